"""Where hung workers are, told in their logs before they are stopped: each kind of worker, each kind of log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from quorate.proc import is_alive
from quorate.records import WorkerExited, WorkerLaunch
from quorate.starter import StackDumper
from quorate_process_local import _stacks
from quorate_process_local._stack_signal import STACK_SIGNAL, STACK_SIGNAL_VARIABLE

from .conftest import DEADLINE_SECONDS, Ear, Group, Start, launch

TIMEOUT = 10.0

BUSY = "def busy_loop():\n    say()\n    while True: pass\nbusy_loop()"
SLEEPS = "def deep_sleep():\n    say()\n    time.sleep(1000)\ndeep_sleep()"
# A call that comes back from signals by itself and never runs Python's own handlers meanwhile.
IN_C = (
    "def blocked_in_c():\n    say()\n    ctypes.PyDLL(None).sem_wait(ctypes.create_string_buffer(64))\nblocked_in_c()"
)
DEADLOCK = """
a, b, met = threading.Lock(), threading.Lock(), threading.Barrier(3)
def lock(first, second):
    with first:
        met.wait()
        with second: pass
def lock_ab(): lock(a, b)
def lock_ba(): lock(b, a)
threads = [threading.Thread(target=target) for target in (lock_ab, lock_ba)]
for thread in threads: thread.start()
met.wait()
def join_for_ever():
    say()
    for thread in threads: thread.join()
join_for_ever()
"""
#: What quorate_watchdog's client does when it is first used.
ANSWERS = f"import faulthandler; faulthandler.register(int(os.environ[{STACK_SIGNAL_VARIABLE!r}]), file=2)\n"
HANDLES_TERM = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"


def program(ear: Ear, code: str, **logs: Any) -> Callable[[int], Any]:
    """Return what makes the launch of a Python program that tells the ear when it is where it should be."""
    prelude = "import ctypes, os, signal, sys, threading, time\n"
    prelude += f"def say(word='here'): open({str(ear.path)!r}, 'w').write(word + '\\n')\n"
    environment = {"PYTHONFAULTHANDLER": "1", **logs.pop("environment", {})}
    return lambda rank: launch(rank, sys.executable, "-c", prelude + code, environment=environment, **logs)


@pytest.fixture
def without_py_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stacks, "find_py_spy", lambda: "")


def dump(group: Group, hung: int = 0, timeout: float = TIMEOUT) -> None:
    """As the agent: on a thread of its own, while the context goes on being served."""
    assert isinstance(group.context, StackDumper)
    thread = threading.Thread(target=group.context.dump_stacks, args=(hung, timeout))
    started = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(0.02)
        group.exits += group.context.advance(time.monotonic())
    assert time.monotonic() - started < timeout + 5.0


def stop(group: Group, with_signal: int = signal.SIGTERM) -> dict[int, WorkerExited]:
    group.stop(with_signal, 5.0)
    group.run()
    return {exit.local_rank: exit for exit in group.exits}


@pytest.mark.usefixtures("without_py_spy")
@pytest.mark.parametrize("answers", [ANSWERS, ""], ids=["by the signal", "by SIGABRT"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (BUSY, ["busy_loop"]),
        (SLEEPS, ["deep_sleep"]),
        (IN_C, ["blocked_in_c"]),
        (DEADLOCK, ["lock_ab", "lock_ba", "join_for_ever"]),
    ],
    ids=["busy", "sleeps", "in C", "deadlock"],
)
def test_every_thread_of_a_hung_worker_is_in_its_log(
    start: Start, ear: Ear, tmp_path: Path, code: str, expected: list[str], answers: str
) -> None:
    log = tmp_path / "stderr.log"
    group = start("exec", [program(ear, answers + code, stderr=str(log))(0)])
    ear.words(1)
    dump(group)
    exits = stop(group)
    text = log.read_text()
    assert "most recent call first" in text
    assert all(f"in {name}" in text for name in expected), text
    assert exits[0].exit_code == (-signal.SIGTERM if answers else -signal.SIGABRT)
    assert exits[0].stopped == bool(answers)


@pytest.mark.parametrize("kind", ["teed", "console", "file"])
@pytest.mark.usefixtures("without_py_spy")
def test_the_stacks_are_wherever_stderr_goes(
    start: Start, ear: Ear, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "stderr.log"
    logs: dict[str, Any] = {
        "teed": {"stderr": str(log), "tee_stderr": True, "prefix": "[w0]: "},
        "console": {"prefix": "[w0]: "},
        "file": {"stderr": str(log)},
    }[kind]
    group = start("exec", [program(ear, SLEEPS, **logs)(0)])
    ear.words(1)
    dump(group)
    exits = stop(group)
    console = capfd.readouterr().err
    assert ("in deep_sleep" in console) == (kind != "file")
    assert ("[w0]: " in console) == (kind != "file")
    assert any("in deep_sleep" in line for line in exits[0].stderr_tail)
    if kind != "console":
        assert "in deep_sleep" in log.read_text()


@pytest.mark.usefixtures("without_py_spy")
def test_an_answer_that_is_held_up_is_waited_for() -> None:
    """Its stderr is a pipe that is full: the process is quiet, but has not said all."""
    code = f"""
import faulthandler, fcntl, sys, time
faulthandler.register({STACK_SIGNAL}, file=2)
fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 4096)
def the_deepest():
    print("here", flush=True)
    time.sleep(1000)
def descend(depth): descend(depth - 1) if depth else the_deepest()
def {"the_outermost" * 10}(): descend(40)
{"the_outermost" * 10}()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"here\n"
            os.write(write_end := os.open(f"/proc/{process.pid}/fd/2", os.O_WRONLY), b"x" * 4000)
            os.close(write_end)
            workers = [(0, process.pid, "")]
            asking = threading.Thread(target=_stacks.dump_stacks, args=(workers, 0, 100.0, DEADLINE_SECONDS))
            asking.start()
            asking.join(0.5)  # far longer than the two looks after which a quiet process was taken for done
            assert asking.is_alive()
            assert process.stderr.read(4000) == b"x" * 4000
            text = b""
            while b"<module>" not in text:
                text += os.read(process.stderr.fileno(), 65536)
            asking.join(DEADLINE_SECONDS)
            assert not asking.is_alive()
        finally:
            process.kill()
    assert b"the_deepest" in text
    assert b"the_outermost" in text


@pytest.mark.usefixtures("without_py_spy")
def test_siblings_are_asked_too_and_those_with_something_to_save_are_spared(
    start: Start, ear: Ear, tmp_path: Path
) -> None:
    """The hung one has no more to lose; a sibling that handles SIGTERM still gets that."""
    logs = [tmp_path / str(rank) for rank in range(3)]
    codes = [HANDLES_TERM + SLEEPS, HANDLES_TERM + SLEEPS, ANSWERS + HANDLES_TERM + SLEEPS]
    group = start("exec", [program(ear, code, stderr=str(logs[rank]))(rank) for rank, code in enumerate(codes)])
    ear.words(3)
    dump(group, hung=0)
    exits = stop(group)
    assert "in deep_sleep" in logs[0].read_text()
    assert "it handles SIGTERM and may have something to save; with py-spy installed" in logs[1].read_text()
    assert "in deep_sleep" in logs[2].read_text()
    assert {rank: exit.exit_code for rank, exit in exits.items()} == {0: -signal.SIGABRT, 1: 0, 2: 0}


@pytest.mark.usefixtures("without_py_spy")
def test_a_stopped_worker_is_said_to_be_stopped(start: Start, ear: Ear, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    group = start("exec", [program(ear, SLEEPS, stderr=str(log))(0)])
    ear.words(1)
    (pid,) = group.context.pids().values()
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    dump(group)
    assert log.read_text() == (
        f"quorate: process {pid} (local rank 0) is stopped by a signal (SIGSTOP); it goes on upon SIGCONT\n"
    )
    assert stop(group, signal.SIGKILL)[0].exit_code == -signal.SIGKILL


@pytest.mark.usefixtures("without_py_spy")
def test_a_program_that_is_not_python_is_left_for_sigterm(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    group = start("exec", [launch(0, "sleep", "1000", stderr=str(log))])
    dump(group)
    assert "it writes none; with py-spy installed they could be read from outside" in log.read_text()
    assert stop(group)[0].exit_code == -signal.SIGTERM


def in_a_shell(single: WorkerLaunch) -> WorkerLaunch:
    """Return the launch of a shell that runs the program and then exits with code 7."""
    return attrs.evolve(single, entrypoint="sh", args=("-c", '"$@"; exit 7', "sh", single.entrypoint, *single.args))


@pytest.mark.usefixtures("without_py_spy")
def test_python_is_found_behind_a_shell(start: Start, ear: Ear, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    group = start("exec", [in_a_shell(program(ear, SLEEPS, stderr=str(log))(0))])
    ear.words(1)
    dump(group)
    assert "in deep_sleep" in log.read_text()
    group.run()
    assert group.exits[0].exit_code == 7


@pytest.mark.usefixtures("without_py_spy")
def test_what_a_worker_started_is_asked_but_never_aborted(start: Start, ear: Ear, tmp_path: Path) -> None:
    """A data loader that ended by SIGABRT would make its parent fail of it, in the midst of its own report."""
    log = tmp_path / "stderr.log"
    code = f"""
{ANSWERS}
def load_data():
    say(str(os.getpid()))
    time.sleep(1000)
if os.fork() == 0:
    load_data()
if os.fork() == 0:
    faulthandler.unregister(int(os.environ[{STACK_SIGNAL_VARIABLE!r}])) # this one could only be aborted
    load_data()
def train():
    say()
    os.wait()
train()
"""
    group = start("exec", [in_a_shell(program(ear, code, stderr=str(log))(0))])
    children = [int(word) for word in ear.words(3) if word.isdecimal()]
    dump(group)
    text = log.read_text()
    assert "in train" in text
    assert text.count("in load_data") == 1
    assert all(map(is_alive, children))
    assert stop(group)[0].exit_code == -signal.SIGTERM


@pytest.mark.usefixtures("without_py_spy")
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_functions_answer_without_any_doing_of_theirs(
    start: Start, ear: Ear, tmp_path: Path, method: str, functions: ModuleType
) -> None:
    log = tmp_path / "stderr.log"
    environment = {"PYTHONFAULTHANDLER": "1"}
    function = functions.sleep_as_a_function
    group = start(method, [launch(0, function, str(ear.path), stderr=str(log), environment=environment)])
    ear.words(1)
    dump(group)
    assert stop(group)[0].exit_code == -signal.SIGTERM
    assert "in sleep_as_a_function" in log.read_text()


@pytest.mark.skipif(not _stacks.find_py_spy(), reason="py-spy is not installed")
def test_py_spy_shows_native_stacks_and_spares_everybody(start: Start, ear: Ear, tmp_path: Path) -> None:
    logs = [tmp_path / str(rank) for rank in range(2)]
    codes = [IN_C, HANDLES_TERM + SLEEPS]
    group = start("exec", [program(ear, code, stderr=str(logs[rank]))(rank) for rank, code in enumerate(codes)])
    ear.words(2)
    dump(group, timeout=2 * DEADLINE_SECONDS)
    texts = [log.read_text() for log in logs]
    if "Permission" in texts[0]:
        pytest.skip("this machine does not let processes be looked into")
    assert "by py-spy:" in texts[0]
    assert "blocked_in_c" in texts[0]
    assert "sem_wait" in texts[0]
    assert "deep_sleep" in texts[1]
    assert {rank: exit.exit_code for rank, exit in stop(group).items()} == {0: -signal.SIGTERM, 1: 0}


def test_a_py_spy_that_never_ends_costs_no_more_than_its_time(
    start: Start, ear: Ear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "py-spy"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o700)
    monkeypatch.setattr(_stacks, "find_py_spy", lambda: str(slow))
    log = tmp_path / "stderr.log"
    group = start("exec", [program(ear, SLEEPS, stderr=str(log))(0)])
    ear.words(1)
    dump(group, timeout=3.0)
    text = log.read_text()
    assert "py-spy could not read process" in text
    assert "it took too long" in text
    assert "in deep_sleep" in text
    assert stop(group)[0].exit_code == -signal.SIGABRT
