"""A plugin that does not return: an agent that is told to stop does so, and names the plugin."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from core.tests.cli_runs import clean_environment, runs_a_job
from core.tests.test_hostile_plugins import install

from quorate._isolation import PluginInterrupted, call_interruptibly, interrupt_plugin
from quorate.clock import monotonic, sleep

SECONDS = 120.0

STUCK = """
import threading
from quorate import hookimpl
from quorate.catalogue import EventSink, ServiceBackend

def wait(*arguments):
    print("stuck", flush=True)
    threading.Event().wait()
"""
PLACES = {
    "decision": "@hookimpl\ndef quorate_decide_launch(launch, assignment): wait()",
    "observer": "@hookimpl\ndef quorate_observe_event(event): wait()",
    "offer": "@hookimpl\ndef quorate_register_service(): wait()",
    "sink": "@hookimpl\ndef quorate_register_event_sink(): return [EventSink('sink', 'waits', wait)]",
    "service": """
class Service:
    worker_environment = {}
    observe = wait
    def close(self): pass
@hookimpl
def quorate_register_service(): return [ServiceBackend('service', 'waits', lambda view: Service())]
""",
}
#: How messages call what is not named by its plugin.
NAMES = {"sink": "event sink 'sink'", "service": "service 'service'"}


@runs_a_job
@pytest.mark.parametrize("place", PLACES)
def test_an_agent_that_a_plugin_keeps_stops_when_it_is_told_to(tmp_path: Path, place: str) -> None:
    install(tmp_path / "plugins", "aaa", STUCK + PLACES[place])
    (tmp_path / "train.py").write_text("import time; time.sleep(600)")
    flags = ["--event-log-handler=sink"] if place == "sink" else []
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("quorate")), "run", "--standalone", *flags, str(tmp_path / "train.py")],
        env=clean_environment(PYTHONPATH=str(tmp_path / "plugins")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        sleep(1.5)  # longer than a hook may take
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "PluginInterrupted: it had not returned after" in errors
    assert NAMES.get(place, "aaa") in errors
    assert "Traceback" not in errors


def test_only_a_long_call_that_began_since_then_is_interrupted() -> None:
    before = monotonic()

    def look() -> None:
        interrupt_plugin(before, None)  # it has just begun
        interrupt_plugin(monotonic() + 1.0, None, longest=-1.0)  # it began before
        with pytest.raises(PluginInterrupted):
            interrupt_plugin(before, None, longest=-1.0)

    call_interruptibly(look)
    interrupt_plugin(before, None, longest=-1.0)  # there is none
