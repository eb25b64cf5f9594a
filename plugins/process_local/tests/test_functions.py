"""The start methods for functions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quorate.catalogue import PluginKind
from quorate.errors import StartError
from quorate.proc import is_alive

from .conftest import Ear, Start, launch, starter

METHODS = ["spawn", "fork", "forkserver"]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_values_come_back_by_rank_and_none_stays_none(start: Start, functions: ModuleType, method: str) -> None:
    calls = [(functions.echo, 0, "a"), (functions.nothing,), (functions.echo, {"b": [1.5]})]
    exits = start(method, [launch(rank, *call) for rank, call in enumerate(calls)]).run()
    assert {event.local_rank: (event.exit_code, event.return_value, event.problem) for event in exits} == {
        0: (0, (0, "a"), ""),
        1: (0, None, ""),
        2: (0, ({"b": [1.5]},), ""),
    }


def test_values_larger_than_any_pipe(start: Start, functions: ModuleType, method: str) -> None:
    size = 20_000_000
    (event,) = start(method, [launch(0, functions.echo, b"y" * size)]).run()
    assert event.return_value == (b"y" * size,)


@pytest.mark.slow  # imports torch in the test and in a worker
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_tensor_arrives_by_value(start: Start, functions: ModuleType, method: str) -> None:
    """Intact although the worker has long exited."""
    torch = pytest.importorskip("torch")
    (event,) = start(method, [launch(0, functions.tensor)]).run()
    assert event.exit_code == 0, event.stderr_tail
    assert torch.equal(event.return_value, torch.arange(10_000, dtype=torch.float32).reshape(100, 100))


def test_an_exception_is_exit_code_one_with_its_traceback(
    start: Start, functions: ModuleType, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (event,) = start(method, [launch(0, functions.boom)]).run()
    assert (event.exit_code, event.return_value) == (1, None)
    assert event.stderr_tail[0] == "Traceback (most recent call last):"
    assert event.stderr_tail[-1] == "ValueError: a reason"
    assert not any("quorate" in line for line in event.stderr_tail)
    assert "ValueError: a reason" in capfd.readouterr().err


def test_an_exception_is_recorded(start: Start, functions: ModuleType, method: str, tmp_path: Path) -> None:
    """Where a recorder is installed."""
    pytest.importorskip("quorate_errors")
    from quorate.plugins import get_host

    if "file" not in get_host().catalogue(PluginKind.ERROR_RECORDER):
        pytest.skip("the recorder is not installed")
    path = tmp_path / "error.json"
    start(method, [launch(0, functions.boom, error_file=str(path))]).run()
    assert "a reason" in json.dumps(json.loads(path.read_text())["message"])


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (0, 0), (None, 0), (-1, 255), (10**30, 255)])
def test_sys_exit_keeps_its_code(
    start: Start, functions: ModuleType, method: str, code: int | None, expected: int
) -> None:
    (event,) = start(method, [launch(0, functions.leave, code)]).run()
    assert (event.exit_code, event.return_value, event.problem) == (expected, None, "")


def test_a_worker_that_vanishes_with_zero_has_no_value(start: Start, functions: ModuleType, method: str) -> None:
    (event,) = start(method, [launch(0, functions.leave_at_once)]).run()
    assert (event.exit_code, event.return_value) == (0, None)


def test_a_value_that_cannot_be_pickled_is_said_so(start: Start, functions: ModuleType, method: str) -> None:
    (event,) = start(method, [launch(0, functions.unpicklable)]).run()
    assert event.exit_code == 1
    assert "unpicklable returned a lock, which cannot be pickled" in event.stderr_tail[-1]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_function_that_cannot_be_pickled_is_said_so(method: str) -> None:
    with pytest.raises(StartError, match="top level of a module"):
        starter(method).start([launch(0, lambda: None)])


def test_a_forked_worker_takes_any_function(start: Start) -> None:
    (event,) = start("fork", [launch(0, lambda: 17)]).run()
    assert event.return_value == 17


def test_a_worker_killed_by_a_signal(start: Start, functions: ModuleType, method: str) -> None:
    (event,) = start(method, [launch(0, os.kill, 0, signal.SIGKILL)]).run()
    assert event.exit_code == -signal.SIGKILL


def test_surroundings(start: Start, functions: ModuleType, method: str, tmp_path: Path) -> None:
    """Environment, session, signals, streams and parent are as in a process of the standard library's, or better."""
    out, err = tmp_path / "out", tmp_path / "err"
    old = signal.signal(signal.SIGTERM, lambda *_: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.environ["NOT_GIVEN"] = "to the agent only"
    one = launch(0, functions.surroundings, stdout=str(out), stderr=str(err), environment={"A": "b"})
    del one.environment["NOT_GIVEN"]  # type: ignore[attr-defined] # it is a dict here
    try:
        (event,) = start(method, [one]).run()
    finally:
        del os.environ["NOT_GIVEN"]
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, old)
    assert event.exit_code == 0, err.read_text()
    assert event.return_value == {
        "sid": True,
        "env": {"A": "b", "QUORATE_AGENT_TOKEN": "token-of-the-agent", "NOT_GIVEN": None},
        "mask": set(),
        "term": True,
        "int": True,
        "daemon": False,
        "parent": True,
    }
    assert (out.read_text(), err.read_text()) == ("to stdout\n", "to stderr\n")


def test_a_worker_may_start_processes(start: Start, functions: ModuleType, method: str) -> None:
    (event,) = start(method, [launch(0, functions.child_of_worker)]).run()
    assert event.return_value == 0


def test_what_multiprocessing_passes_can_be_passed(start: Start, functions: ModuleType, method: str) -> None:
    queue = multiprocessing.get_context(method).Queue()
    try:
        (event,) = start(method, [launch(0, functions.put, queue, "word")]).run()
        assert event.exit_code == 0, event.stderr_tail
        assert queue.get(timeout=30) == "word"
    finally:
        queue.close()
        queue.join_thread()


def test_forked_children_of_a_worker_are_swept(start: Start, functions: ModuleType, method: str, ear: Ear) -> None:
    group = start(method, [launch(0, functions.sleep_in_child, str(ear.path))])
    (pid,) = map(int, ear.words(1))
    os.kill(group.context.pids()[0], signal.SIGKILL)
    assert [event.exit_code for event in group.run()] == [-signal.SIGKILL]
    assert not is_alive(pid)


@pytest.mark.parametrize("outer", ["fork", "spawn"])
@pytest.mark.parametrize("is_daemon", [False, True])
def test_an_agent_may_itself_be_a_child(
    start: Start, functions: ModuleType, method: str, outer: str, is_daemon: bool
) -> None:
    """Inside a process that was itself forked or spawned, a daemonic one too, several times."""
    start(method, [launch(0, functions.nothing)]).run()  # what the parent has used must not confuse the child
    context: Any = multiprocessing.get_context(outer)
    here, there = context.Pipe()
    agent = context.Process(target=functions.be_an_agent, args=(method, there), daemon=is_daemon)
    agent.start()
    there.close()
    try:
        assert here.poll(60)
        assert here.recv() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    finally:
        here.close()
        agent.join(30)
        assert agent.exitcode == 0
        agent.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_working_folder_that_was_removed_is_named(
    start: Start, functions: ModuleType, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(StartError, match="the working folder of this process has been removed"):
        start(method, [launch(0, functions.child_of_worker)])
