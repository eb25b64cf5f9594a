"""The start method exec: exit codes, signals, environment, errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.errors import StartError
from quorate.proc import is_alive, open_pidfd, parent_death_command

from .conftest import Ear, Group, Start, children, launch, polite, starter, wait_for_end

Shell = Callable[..., Group]
FATAL = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGBUS, signal.SIGFPE, signal.SIGILL]


def test_exit_codes_arrive_once_each_with_pid_and_rank(sh: Shell) -> None:
    group = sh("exit 0", "exit 3", "exit 255")
    pids = dict(group.context.pids())
    exits = {event.local_rank: event for event in group.run()}
    assert {rank: event.exit_code for rank, event in exits.items()} == {0: 0, 1: 3, 2: 255}
    assert {rank: event.pid for rank, event in exits.items()} == pids
    assert len(group.exits) == 3
    assert not any(event.stopped or event.problem for event in group.exits)


@pytest.mark.parametrize("number", FATAL, ids=lambda number: number.name)
def test_a_fatal_signal_is_a_negative_exit_code(sh: Shell, number: signal.Signals) -> None:
    (event,) = sh(f"ulimit -c 0; kill -{int(number)} $$").run()
    assert (event.exit_code, event.stopped) == (-number, False)


def test_exits_are_told_in_the_order_in_which_they_happened(start: Start, ear: Ear) -> None:
    script = f"read -r _ <'{ear.path}.%d'; exit %d"
    for rank in range(3):
        os.mkfifo(f"{ear.path}.{rank}")
    group = start("exec", [launch(rank, "sh", "-c", script % (rank, rank)) for rank in range(3)])
    pids = group.context.pids()
    for rank in (2, 0, 1):
        with open(f"{ear.path}.{rank}", "w") as door:
            door.write("go\n")
        pidfd = os.pidfd_open(pids[rank])
        wait_for_end([pids[rank]])
        os.close(pidfd)
    assert [event.local_rank for event in group.run()] == [2, 0, 1]


def test_a_worker_starts_as_from_a_fresh_shell(start: Start, tmp_path: Path) -> None:
    """Own session, default signals, empty mask, exactly the environment given plus our marks, no descriptor of ours."""
    out = tmp_path / "out"
    script = (
        "import os, signal; print(os.getsid(0) == os.getpid() == os.getpgrp(), sorted(os.listdir('/proc/self/fd')),"
        "signal.pthread_sigmask(signal.SIG_BLOCK, []), int(signal.getsignal(signal.SIGUSR1)),"
        "os.environ['QUORATE_AGENT_TOKEN'], os.environ['A'], 'QUORATE_CONTEXT' in os.environ)"
    )
    leak = os.dup(1)
    os.set_inheritable(leak, True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        group = start("exec", [launch(0, sys.executable, "-c", script, stdout=str(out), environment={"A": "b"})])
    finally:
        signal.signal(signal.SIGUSR1, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(leak)
    assert group.run()[0].exit_code == 0
    assert out.read_text() == "True ['0', '1', '2', '3'] set() 0 token-of-the-agent b True\n"


def test_the_workers_own_path_counts(start: Start, tmp_path: Path) -> None:
    tool = tmp_path / "only-here"
    tool.write_text("#!/bin/sh\nexit 7\n")
    tool.chmod(0o755)
    group = start("exec", [launch(0, "only-here", environment={"PATH": str(tmp_path)})])
    assert group.run()[0].exit_code == 7


def _program(path: Path, text: str, mode: int) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("#!/bin/sh\n", 0o644, "not executable"),
        ("no program at all", 0o755, "neither a program"),
        ("#!/no/such/interpreter\n", 0o755, "interpreter that does not exist"),
    ],
)
def test_what_cannot_be_started_says_why(tmp_path: Path, text: str, mode: int, words: str) -> None:
    """One clear sentence, and nothing stays behind of the workers that had started."""
    path = _program(tmp_path / "tool", text, mode)
    with pytest.raises(StartError, match=words) as caught:
        starter("exec").start([launch(0, "sleep", "1000"), launch(1, path)])
    assert caught.value.local_rank == 1


@pytest.mark.parametrize(
    ("command", "words"), [("no-such-tool", "PATH"), ("/no/such", "no file"), ("/tmp", "folder"), ("", "empty")]
)
def test_a_command_that_is_not_there(command: str, words: str) -> None:
    with pytest.raises(StartError, match=words):
        starter("exec").start([launch(0, command)])


def test_wrong_kinds_of_entrypoint_are_refused() -> None:
    with pytest.raises(StartError, match="spawn for a function"):
        starter("exec").start([launch(0, print)])
    with pytest.raises(StartError, match="exec for a command"):
        starter("spawn").start([launch(0, "ls")])
    with pytest.raises(StartError, match="NUL"):
        starter("exec").start([launch(0, "echo", "a\0b")])


def test_arguments_larger_than_the_kernel_allows() -> None:
    with pytest.raises(StartError, match="larger than the kernel allows"):
        starter("exec").start([launch(0, "/bin/true", "x" * 10_000_000)])


def test_the_death_wrapper_is_asked_whether_it_knows_the_option(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _program(tmp_path / "a" / "setpriv", "another tool box", 0o755)
    good = _program(tmp_path / "b" / "setpriv", "knows --pdeathsig", 0o755)
    assert parent_death_command(str(tmp_path / "a")) == ()
    assert parent_death_command(f"{tmp_path}/a:{tmp_path}/b")[0] == good


def test_stop_signals_the_group_and_marks_victims_only(sh: Shell, ear: Ear) -> None:
    group = sh(f"echo ready >'{ear.path}'; sleep 1000", "exit 5")
    ear.words(1)
    group.run_until(lambda: len(group.exits) == 1)
    group.stop()
    exits = {event.local_rank: event for event in group.run()}
    assert (exits[1].exit_code, exits[1].stopped) == (5, False)
    assert (exits[0].exit_code, exits[0].stopped) == (-signal.SIGTERM, True)


def test_who_ended_before_the_stop_is_no_victim_even_if_not_told_yet(sh: Shell) -> None:
    group = sh("exit 5")
    pid = group.context.pids()[0]
    wait_for_end([pid])
    group.stop()
    assert [(event.exit_code, event.stopped) for event in group.run()] == [(5, False)]


def test_a_worker_that_ignores_the_signal_is_killed_when_the_grace_is_over(sh: Shell, ear: Ear) -> None:
    group = sh(f"trap '' TERM; echo ready >'{ear.path}'; while :; do sleep 1000; done")
    ear.words(1)
    group.stop(grace_seconds=0.2)
    (event,) = group.run()
    assert (event.exit_code, event.stopped) == (-signal.SIGKILL, True)


def test_a_second_stop_shortens_the_grace_and_never_lengthens_it(sh: Shell, ear: Ear) -> None:
    group = sh(f"trap '' TERM INT; echo ready >'{ear.path}'; while :; do sleep 1000; done")
    ear.words(1)
    group.stop(grace_seconds=1000.0)
    assert group.context.wake_at() == 0.0  # the agent is to look at once
    group.context.advance(0.0)
    far = group.context.wake_at()
    group.stop(signal.SIGINT, 0.3)
    group.context.advance(0.0)
    near = group.context.wake_at()
    group.stop(grace_seconds=2000.0)
    group.context.advance(0.0)
    assert far is not None
    assert near is not None
    assert near < far
    assert group.context.wake_at() == near
    assert group.run()[0].exit_code == -signal.SIGKILL


def test_a_worker_may_use_its_grace(sh: Shell, ear: Ear) -> None:
    group = sh(f"exec {polite(ear)}")
    ear.words(1)
    group.stop()
    assert [(event.exit_code, event.stopped) for event in group.run()] == [(3, True)]
    assert ear.words(1) == ["asked"]


def test_close_kills_what_runs_and_may_come_from_another_thread(sh: Shell, ear: Ear) -> None:
    """An agent that is not in the main thread."""
    pids: list[int] = []

    def agent() -> None:
        group = sh(f"trap '' TERM; sleep 1000 & echo $! >'{ear.path}'; sleep 1000")
        pids.extend(int(word) for word in ear.words(1))
        pids.extend(group.context.pids().values())
        group.close()

    thread = threading.Thread(target=agent)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(pids) == 2
    assert pids[1] not in children()
    assert not is_alive(pids[0])


def test_without_pidfds_exits_are_still_seen(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pidfd_open", lambda pid: (_ for _ in ()).throw(OSError(38, "not implemented")))
    assert open_pidfd(os.getpid()) == -1
    group = sh("sleep 1000 & exit 4")
    assert group.context.wake_at() is not None
    assert [event.exit_code for event in group.run()] == [4]


def test_a_stolen_exit_status_is_a_problem_not_a_hang(sh: Shell) -> None:
    group = sh("exit 4")
    pid = group.context.pids()[0]
    os.waitpid(pid, 0)
    (event,) = group.run()
    assert event.exit_code == 255
    assert "taken by other code" in event.problem
