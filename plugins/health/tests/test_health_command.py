"""The check that is a command of the user: its end, its output, and what it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .health_runs import DEADLINE, refused, run, wait_for_end

# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("false", "command: false ended with exit code 1"),
        (
            "sh -c 'echo begun; echo not good >&2; echo; exit 3'",
            "command: sh ended with exit code 3: not good",
        ),
        ("sh -c 'kill -KILL $$'", "command: sh was killed by SIGKILL"),
        ("no-such-program", "command: no-such-program cannot be run: there is no such program"),
        ("/etc/passwd", "command: /etc/passwd cannot be run: it is not an executable file"),
        ("echo fine", ""),
    ],
)
def test_a_command_of_the_user(tmp_path: Path, command: str, problem: str) -> None:
    done = run(f"--health-check-cmd={command}", path=tmp_path)
    if problem:
        assert refused(done).startswith(problem)
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, "worker ran\n", "")


def test_a_command_does_not_get_the_job_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_JOB_TOKEN", "0123456789abcdef")
    done = run("--health-check-cmd=sh -c 'echo token=$QUORATE_JOB_TOKEN.; exit 1'", path=tmp_path)
    assert refused(done) == "command: sh ended with exit code 1: token=."


def test_control_characters_of_a_command_do_not_reach_the_terminal(tmp_path: Path) -> None:
    done = run(r"--health-check-cmd=sh -c 'printf \\033[2Jbad; exit 1'", path=tmp_path)
    assert refused(done) == "command: sh ended with exit code 1: bad"


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """The child holds the pipe open and ignores SIGTERM; neither keeps it alive."""
    pid = tmp_path / "pid"
    command = f"sh -c 'trap \"\" TERM; sleep 1000 & echo so far; echo $! > {pid}.new; mv {pid}.new {pid}; wait'"
    for timeout in (0.5, 2, 8, 20):  # until it is long enough for a busy machine to run the command so far
        began = time.monotonic()
        done = run(f"--health-check-cmd={command}", f"--health-check-conf=command_timeout_s={timeout}", path=tmp_path)
        problem = refused(done)
        assert time.monotonic() - began < DEADLINE / 2 + timeout
        if pid.exists():
            break
    assert problem == f"command: sh was killed, because it had not ended after {timeout} s (command_timeout_s): so far"
    wait_for_end(int(pid.read_text()))


def test_a_child_that_a_command_leaves_does_not_delay_the_job(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    done = run(f"--health-check-cmd=sh -c 'sleep 1000 & echo $! > {pid}'", path=tmp_path)
    assert done.returncode == 0
    wait_for_end(int(pid.read_text()))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_command_ends_with_its_agent(tmp_path: Path, number: int, code: int) -> None:
    """Whether the agent is asked to stop while the command runs, or just dies."""
    pipe, script = tmp_path / "pipe", tmp_path / "worker.py"
    os.mkfifo(pipe)
    script.touch()
    command = f"--health-check-cmd=sh -c 'echo $$ > {pipe}; exec sleep 1000'"
    words = [sys.executable, "-m", "quorate", "run", "--standalone", command, str(script)]
    agent = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        pid = int(pipe.read_text())
        agent.send_signal(number)
        assert agent.wait(DEADLINE) == code
        wait_for_end(pid)
    finally:
        agent.kill()
        agent.wait()
