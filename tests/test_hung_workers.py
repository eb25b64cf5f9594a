"""Whole jobs with workers that hang: timers of torch's kind, stacks in all logs, restarts, and exits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate import Std
from tests import watchdog_workers as workers
from tests.harness import DEADLINE, Job

ENABLE, FILE = "TORCHELASTIC_ENABLE_FILE_TIMER", workers.FILE

one_backend = pytest.mark.parametrize("backend", ["tcp"], indirect=True)


@pytest.mark.parametrize(
    ("is_set", "is_enabled"), [(True, True), (True, False), (False, False)], ids=["served", "set", "unset"]
)
def test_workers_see_the_timer_file_and_it_is_served_if_asked(job: Job, is_set: bool, is_enabled: bool) -> None:
    """What is set for the agent, the worker sees; with the other variable a timer server listens there."""
    path = str(job.folder / "timers")
    given = ({FILE: path} if is_set else {}) | ({ENABLE: "1"} if is_enabled else {})
    (outcome,) = job.run(job.plan(workers.timer_file), **given)
    assert outcome.values == {0: (path if is_set else None, is_enabled, is_enabled)}
    assert not os.path.exists(path)


@one_backend
def test_a_hang_ends_the_round_with_stacks_in_every_log_and_the_job_goes_on(job: Job) -> None:
    plan = job.plan(workers.hang_once, 1, workers=2, max_restarts=1, logs={"redirects": Std.ALL})
    (outcome,) = job.run(plan)
    assert outcome.values == {0: 0, 1: 1}
    console = job.hosts[0].console()
    assert "ended (hang -> restart): rank 1 (local rank 1) on " in console
    assert re.search(r" hangs: scope 'step' is [\d.]+ s over its 0\.5 s", console)
    hung, sibling = (next(job.log_dir.rglob(f"attempt_0/{rank}/stderr.log")).read_text() for rank in (1, 0))
    assert "in hang_in_the_step" in hung
    assert "in wait_for_the_hung_one" in sibling


@one_backend
def test_a_hang_without_restarts_left_fails_the_job_with_its_cause(job: Job) -> None:
    (outcome,) = job.run(job.plan(workers.hang_once, 0))
    (failure,) = outcome.failed.failures.values()
    assert "scope 'step'" in str(failure.message)


def run_command(folder: Path, code: str, *flags: str, **environment: str) -> tuple[int, str]:
    """Run a program by the command line, as one node alone; return its exit code and what it said."""
    script = folder / "script.py"
    script.write_text(code)
    argv = [sys.executable, "-m", "quorate", "run", "--standalone", "--shutdown-timeout=5", *flags, str(script)]
    # Not by pipes: what lives on would keep them open.
    with open(folder / "output", "w") as out, open(folder / "errors", "w") as errors:
        done = subprocess.run(
            argv, env={**os.environ, **environment}, stdout=out, stderr=errors, timeout=DEADLINE, check=False
        )
    return done.returncode, (folder / "errors").read_text()


NO_HEARTBEAT = r"no heartbeat for ([\d.]+) s, ([\d.]+) s more than --heartbeat-timeout"


@pytest.mark.parametrize(
    ("flag", "code", "expected"),
    [
        ("--heartbeat-timeout=0.5", "from quorate_watchdog import heartbeat\nheartbeat()\n", NO_HEARTBEAT),
        ("--hang-after=1", "", r"no CPU used and no output written for ([\d.]+) s"),
    ],
)
def test_what_the_flags_ask_for_is_noticed(tmp_path: Path, flag: str, code: str, expected: str) -> None:
    returned, errors = run_command(tmp_path, f"{code}import time\ntime.sleep(1000)\n", flag)
    assert returned == 1, errors
    told = re.search(f" hangs: {expected}", errors)
    assert told is not None, errors
    after = float(flag.partition("=")[2])
    silent, *over = map(float, told.groups())
    assert silent >= after
    assert all(silent - more == pytest.approx(after, abs=0.101) for more in over)  # each is rounded to a tenth


@pytest.mark.parametrize("flag", ["--heartbeat-timeout=soon", "--hang-after=-1"])
def test_a_flag_that_is_no_time_is_refused(tmp_path: Path, flag: str) -> None:
    returned, errors = run_command(tmp_path, "", flag)
    assert returned == 2
    assert f"{flag} is not a number of seconds; 0 turns it off" in errors


# --- processes that no signal ends ----------------------------------------------------------------------------------


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A control group whose processes are put into an uninterruptible wait; thawed, and dead, at the end."""
    group = Path("/sys/fs/cgroup/freezer") / f"quorate-{os.urandom(4).hex()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no process can be frozen here: {error}")
    yield group
    for pid in (group / "tasks").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    (group / "freezer.state").write_text("THAWED")
    end = time.monotonic() + DEADLINE
    while (group / "tasks").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)  # a control group tells nobody that it has become empty
    group.rmdir()


@pytest.mark.slow  # the agent waits five seconds for what SIGKILL does not end
@pytest.mark.parametrize(("restarts", "code"), [(1, 5), (0, 1)], ids=["the job goes on", "the job is over"])
def test_a_process_that_no_signal_ends_is_named_and_never_holds_the_agent(
    tmp_path: Path, freezer: Path, restarts: int, code: int
) -> None:
    """A node that holds such a process starts no workers beside it; its exit code says so, unless the job is over."""
    freeze = f"""
import os, sys, time
open({str(freezer / "tasks")!r}, "w").write(sys.argv[1])
open({str(freezer / "freezer.state")!r}, "w").write("FROZEN")
"""
    script = f"""
import contextlib, os, subprocess, sys, time
if os.environ["RANK"] == "1":
    # Some versions of Python sleep by select(), which is frozen on its way out of the kernel and not where it waits.
    os.execvp("sleep", ["sleep", "1000"])
# Rank 0 freezes its sibling, which the agent lists as the other child of its own once it has started it.
agent = os.getppid()
def sibling():
    for pid in open(f"/proc/{{agent}}/task/{{agent}}/children").read().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"RANK=1" in open(f"/proc/{{pid}}/environ", "rb").read().split(b"\\0"):
                return pid
while (pid := sibling()) is None:
    time.sleep(0.01)
# It may have to come to its sleep first, which nobody announces.
while "nanosleep" not in open(f"/proc/{{pid}}/wchan").read():
    time.sleep(0.01)
subprocess.run([sys.executable, "-c", {freeze!r}, str(pid)], check=True)
while open({str(freezer / "freezer.state")!r}).read().strip() != "FROZEN":
    time.sleep(0.01)
raise SystemExit(3)
"""
    began = time.monotonic()
    returned, errors = run_command(
        tmp_path, script, "--nproc-per-node=2", f"--max-restarts={restarts}", "--shutdown-timeout=0.5"
    )
    assert returned == code, errors
    assert time.monotonic() - began < 30.0
    (pid,) = (freezer / "tasks").read_text().split()
    assert f"process {pid} (state D, waits in hrtimer_nanosleep < " in errors, errors
    assert "did not end within 5 s of SIGKILL and is left to the kernel; it was local rank 1" in errors


@one_backend
def test_the_pipe_of_an_agent_that_was_killed_is_taken_over(job: Job) -> None:
    path = job.folder / "timers"
    os.mkfifo(path)
    (outcome,) = job.run(job.plan(workers.timer_file), **{FILE: str(path), ENABLE: "1"})
    assert outcome.values == {0: (str(path), True, True)}
    assert not path.exists()
