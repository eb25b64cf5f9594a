"""A plugin that does not return: an agent that is told to stop does so, and names the plugin."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from core.tests.cli_runs import clean_environment, runs_a_job
from core.tests.test_hostile_plugins import install

from quorate._interruption import Interrupter, PluginInterrupted, call_within
from quorate.clock import sleep

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
    "closing": """
class Service:
    worker_environment = {}
    def observe(self, event): pass
    close = wait
@hookimpl
def quorate_register_service(): return [ServiceBackend('service', 'waits', lambda view: Service())]
""",
}
#: Not of Python, which begins with a traceback if Ctrl-C comes early.
TRAINING = ["--no-python", "sh", "-c", "echo stuck; exec sleep 600"]
#: How messages call what is not named by its plugin.
NAMES = {"sink": "event sink 'sink'", "service": "service 'service'", "closing": "service 'service'"}


@runs_a_job
@pytest.mark.parametrize(
    ("number", "is_late"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, False)],
    ids=["SIGTERM at once", "SIGTERM later", "Ctrl-C at once"],
)
@pytest.mark.parametrize("place", PLACES)
def test_an_agent_that_a_plugin_keeps_stops_when_it_is_told_to(
    tmp_path: Path, place: str, number: signal.Signals, is_late: bool
) -> None:
    install(tmp_path / "plugins", "aaa", STUCK + PLACES[place])
    flags = ["--event-log-handler=sink"] if place == "sink" else []
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("quorate")), "run", "--standalone", *flags, *TRAINING],
        env=clean_environment(PYTHONPATH=str(tmp_path / "plugins")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        if is_late:
            sleep(1.5)  # longer than a hook may take
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "PluginInterrupted: it had not returned after" in errors
    assert NAMES.get(place, "aaa") in errors
    assert "Traceback" not in errors


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """One for SIGUSR1, which is blocked as an agent blocks SIGINT."""
    interrupter = Interrupter([signal.SIGUSR1])
    before = signal.signal(signal.SIGUSR1, interrupter.handle)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    interrupter.begin()
    try:
        yield interrupter
    finally:
        interrupter.end()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGUSR1, before)


def _tell_to_stop() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)


def _wait() -> None:
    threading.Event().wait(SECONDS)


@pytest.mark.usefixtures("interrupter")
def test_a_call_ends_when_it_has_lasted_for_too_long_after_a_signal_that_came_before() -> None:
    def told() -> None:
        _tell_to_stop()
        _wait()

    with pytest.raises(PluginInterrupted):
        call_within(0.2, told)
    with pytest.raises(PluginInterrupted):
        call_within(0.2, _wait)  # every later one, too


def test_a_call_that_catches_the_exception_gets_another(interrupter: Interrupter) -> None:
    caught: list[BaseException] = []

    def obstinate() -> None:
        _tell_to_stop()
        while len(caught) < 2:
            try:
                _wait()
            except BaseException as error:
                caught.append(error)

    call_within(0.2, obstinate)
    assert [type(error) for error in caught] == [PluginInterrupted] * 2
    assert sum(interrupter.is_own(signal.SIGUSR1) for _ in range(9)) == 2


def test_calls_that_return_and_those_of_nobody_are_let_alone(interrupter: Interrupter) -> None:
    call_within(0.05, _tell_to_stop)
    assert call_within(0.05, lambda: 1) == 1
    outer = call_within(0.05, lambda: call_within(SECONDS, sleep, 0.3))
    assert outer is None, "only the innermost call counts"
    _tell_to_stop()  # blocked again: it waits
    assert signal.SIGUSR1 in signal.sigpending()
    interrupter.end()
    assert call_within(0.05, sleep, 0.3) is None


def test_a_nested_call_ends_and_the_outer_one_goes_on(interrupter: Interrupter) -> None:
    def inner() -> None:
        _tell_to_stop()
        with pytest.raises(PluginInterrupted):
            call_within(0.2, _wait)

    call_within(SECONDS, inner)


def test_an_agent_that_a_plugin_runs_takes_charge_until_it_ends(interrupter: Interrupter) -> None:
    def run_another() -> None:
        inner = Interrupter()
        inner.begin()
        assert call_within(0.05, sleep, 0.2) is None, "it was told nothing"
        inner.end()
        _tell_to_stop()
        with pytest.raises(PluginInterrupted):
            call_within(0.2, _wait)

    call_within(SECONDS, run_another)
