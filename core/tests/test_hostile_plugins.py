"""What a plugin raises on the agent's thread, SystemExit too, is reported once, and the job goes on without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core.tests.cli_runs import clean_environment, runs_a_job

from quorate import PluginHost, hookimpl
from quorate._discovery import find_plugins
from quorate.catalogue import PluginKind
from quorate.cli._plugins import describe
from quorate.records import Event, NodeRecord
from quorate.rendezvous._gather import plugin_warnings

SECONDS = 120.0


class _Odd(BaseException):
    pass


ERRORS = (SystemExit(3), SystemExit(), KeyboardInterrupt(), _Odd("odd"), ValueError("wrong"), RecursionError())


def _raise(error: BaseException) -> Any:
    raise error


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    # As while an agent handles SIGINT: Python itself raises no KeyboardInterrupt then.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    yield []
    signal.signal(signal.SIGINT, before)


def _hook(name: str, error: BaseException) -> Any:
    arguments = {
        "quorate_observe_event": "event",
        "quorate_decide_ranks": "nodes, previous",
        "quorate_decide_rescale": "summary, waiting",
        "quorate_register_service": "",
    }[name]
    space: dict[str, Any] = {"fail": lambda: _raise(error)}
    exec(f"def {name}({arguments}): fail()", space)
    return type("Plugin", (), {name: staticmethod(hookimpl(space[name]))})()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_observer_that_raises_is_reported_once(sentences: list[str], error: BaseException) -> None:
    host = PluginHost([], (), [("bad", _hook("quorate_observe_event", error))], sentences.append)
    for _ in range(3):
        host.observe(Event("name", "reason"))
    assert len(sentences) == 1
    assert "observer bad raised" in sentences[0]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_decision_that_raises_is_made_without_the_plugin(sentences: list[str], error: BaseException) -> None:
    host = PluginHost([], (), [("bad", _hook("quorate_decide_ranks", error))], sentences.append)
    nodes = [NodeRecord(name, "trainer", 1) for name in "ab"]
    for _ in range(3):
        assert sorted(host.decide("ranks", nodes, [])) == ["a", "b"]
    assert len(sentences) == 1
    assert type(error).__name__ in sentences[0]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_catalogue_that_raises_costs_only_its_own_offers(sentences: list[str], error: BaseException) -> None:
    host = PluginHost([], (), [("bad", _hook("quorate_register_service", error))], sentences.append)
    assert host.catalogue(PluginKind.SERVICE) == {}
    assert [broken.found.name for broken in host.broken] == ["bad"]


def test_a_persons_interrupt_is_not_taken_for_the_plugins() -> None:
    host = PluginHost([], (), [("bad", _hook("quorate_observe_event", KeyboardInterrupt()))], lambda sentence: None)
    with pytest.raises(KeyboardInterrupt):
        host.observe(Event("name", "reason"))


def test_the_plugins_command_lists_only_hooks_that_are_active() -> None:
    class Unmarked:
        @hookimpl
        def quorate_observe_event(self, event: Event) -> None: ...

        quorate_decide_notes = "not a hook"

    text, _ = describe(PluginHost([], (), [("plug", Unmarked())], lambda sentence: None))
    assert "observe_event" in text
    assert "decide_notes" not in text


# --- whole jobs -------------------------------------------------------------------------------------------------------

PLUGIN = """
import sys
from quorate import hookimpl
from quorate.catalogue import EventSink, HealthCheck, ServiceBackend

def leave(*arguments):
    {what}

class Service:
    worker_environment = {{}}
    def observe(self, event):
        leave()
    def close(self):
        leave()

@hookimpl
def quorate_register_event_sink():
    return [EventSink("bad", "leaves", leave)]

@hookimpl
def quorate_register_service():
    return [ServiceBackend("start", "leaves", leave), ServiceBackend("observe", "leaves", lambda view: Service())]

@hookimpl
def quorate_observe_event(event):
    leave()

@hookimpl
def quorate_decide_launch(launch, assignment):
    leave()
"""


def install(folder: Path, module: str, source: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[quorate]\n{module} = {module}\n")


@runs_a_job
@pytest.mark.parametrize("what", ["sys.exit(3)", "raise KeyboardInterrupt", "raise BaseException('odd')"])
def test_a_job_goes_on_with_plugins_that_leave(tmp_path: Path, what: str) -> None:
    install(tmp_path / "plugins", "leaver", PLUGIN.format(what=what))
    script = tmp_path / "train.py"
    script.write_text("print('trained')")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("quorate")), "run", "--standalone", "--event-log-handler=bad", str(script)],
        env=clean_environment(PYTHONPATH=str(tmp_path / "plugins")),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert "bug in quorate" not in done.stderr
    for sentence in ("event sink 'bad' raised", "'start' could not be started", "service 'observe' raised"):
        assert done.stderr.count(sentence) == 1, done.stderr
    for hook in ("quorate_decide_launch", "observer leaver"):
        assert done.stderr.count(hook) == 1, done.stderr


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["", ".", "absolute", "a link"])
def test_the_current_directory_brings_no_plugin_in(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "here", "stranger", "")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    place = {"absolute": str(tmp_path / "here"), "a link": str(tmp_path / "link")}.get(entry, entry)
    monkeypatch.setattr(sys, "path", [place, *sys.path])
    assert "stranger" not in {found.name for found in find_plugins()}
    assert "stranger" in {found.name for found in find_plugins([str(tmp_path / "here")])}


def test_an_empty_entry_of_pythonpath_brings_no_plugin_in(tmp_path: Path) -> None:
    install(tmp_path / "here", "stranger", "raise SystemExit('taken over')")
    done = subprocess.run(
        [sys.executable, "-m", "quorate", "plugins"],
        env=clean_environment(PYTHONPATH=os.pathsep),
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert "stranger" not in done.stdout
    assert "taken over" not in done.stderr


@pytest.mark.parametrize("is_written", [False, True])
def test_a_pipe_called_entry_points_is_neither_waited_for_nor_believed(is_written: bool, tmp_path: Path) -> None:
    info = tmp_path / "pipe-1.0.dist-info"
    info.mkdir()
    os.mkfifo(info / "entry_points.txt")
    descriptor = os.open(info / "entry_points.txt", os.O_RDWR | os.O_NONBLOCK)
    try:
        if is_written:
            os.write(descriptor, b"[quorate]\npipe = pipe\n")
        assert find_plugins([str(tmp_path)]) == []
    finally:
        os.close(descriptor)


# --- two nodes' plugins -----------------------------------------------------------------------------------------------


def _warning(first: str, second: str) -> str:
    nodes = [NodeRecord(name, "r", 1, host=name, plugin_digest=text) for name, text in (("a", first), ("b", second))]
    return "".join(plugin_warnings(nodes))


def test_the_difference_between_two_nodes_plugins_is_printed_as_a_difference() -> None:
    same = ",".join(f"same-{number}=1.0" for number in range(40))
    text = _warning(f"{same},x=1.0,only-a=2.0", f"{same},x=1.1,only-b=3.0")
    assert text == (
        "nodes run different plugins: x is 1.0 on a and 1.1 on b; only a has only-a 2.0; only b has only-b 3.0"
    )
    assert _warning(same, same) == ""
    assert _warning("", "x=1") == "nodes run different plugins: only b has x 1"
    assert len(_warning(",".join(f"p{n}=1" for n in range(999)), ",".join(f"p{n}=2" for n in range(999)))) < 1000


BACKENDS = """
from quorate import RendezvousBackend, ServiceBackend, hookimpl

def fail(parameters):
    raise ValueError("odd")

@hookimpl
def quorate_register_rendezvous():
    yield RendezvousBackend("five", "opens 5", open_store=lambda parameters: 5)
    yield RendezvousBackend("odd", "raises", open_store=fail)

@hookimpl
def quorate_register_service():
    return [ServiceBackend("six", "starts 6", start=lambda view: 6)]
"""


@runs_a_job
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("five", "rendezvous backend 'five' opened 5, which is not a store: it has no add()"),
        ("odd", "rendezvous backend 'odd' raised ValueError: odd"),
    ],
)
def test_what_a_backend_opens_is_checked_by_name(tmp_path: Path, name: str, sentence: str) -> None:
    install(tmp_path / "plugins", "opener", BACKENDS)
    (tmp_path / "train.py").write_text("")
    flags = [f"--rdzv-backend={name}", "--rdzv-endpoint=host:1"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("quorate")), "run", *flags, str(tmp_path / "train.py")],
        env=clean_environment(PYTHONPATH=str(tmp_path / "plugins")),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 3, done.stderr
    assert f"quorate: error: {sentence}" in done.stderr
    assert "service 'six' could not be started: TypeError: start answered 6, which is not a service" in done.stderr
