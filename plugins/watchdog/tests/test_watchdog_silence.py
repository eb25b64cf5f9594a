"""Hangs without timers: silent workers are found, and workers that are active in any way are not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.services import HangReport
from quorate.testing import free_port
from quorate_watchdog._activity import ProcessTimes, activity_of
from quorate_watchdog._silence import Record, judge

from .conftest import View, Worker, wait_until

Watch = Callable[..., Any]
Work = Callable[..., Worker]

IDLE = ProcessTimes(5.0, 0, False)


def reports_until(view: View, seconds: float) -> Iterator[HangReport]:
    """Yield the reports of the next ``seconds``, and at least one."""
    end = monotonic() + seconds
    yield view.report()
    while monotonic() < end:
        if view.reports.empty():
            wait_until(lambda: not view.reports.empty() or monotonic() >= end)
        else:
            yield view.report()


# --- judging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "output"),
    [
        (ProcessTimes(5.4, 0, False), 7),  # has computed
        (ProcessTimes(5.0, 0, True), 7),  # would compute if it had a CPU
        (ProcessTimes(5.0, 0, False), 8),  # has written
        (ProcessTimes(4.0, 0, False), 7),  # a child with its time has gone
    ],
)
def test_any_activity_ends_the_silence(times: ProcessTimes, output: int) -> None:
    record = Record(0.0, IDLE, 7)
    assert record.look(10.0, IDLE, 7) == 10.0
    assert record.look(20.0, times, output) < 10.0


def test_threads_that_wake_now_and_then_are_silence() -> None:
    """Half a percent of a core, for an hour."""
    record = Record(0.0, IDLE, 0)
    for second in range(10, 3600, 10):
        assert record.look(second, ProcessTimes(5.0 + 0.005 * second, 0, False), 0) == second


def test_of_two_that_fell_silent_between_two_looks_the_first_had_worked_less() -> None:
    hung, waiting = Record(0.0, IDLE, 0), Record(0.0, IDLE, 0)
    assert hung.look(10.0, ProcessTimes(6.0, 0, False), 0) == 9.0
    assert waiting.look(10.0, ProcessTimes(9.0, 0, False), 0) == 6.0


def test_which_workers_are_reported() -> None:
    assert judge({}, 10.0, 2.5) == []
    assert judge({1: 9.9, 2: 3.0}, 10.0, 2.5) == []
    assert judge({1: 3.0, 2: 10.0, 3: 7.4}, 10.0, 2.5) == [2]
    assert judge({1: 9.0, 2: 10.0, 3: 11.0, 4: 3.0}, 10.0, 2.5) == [3, 2, 1]


def test_a_worker_is_all_that_it_has_started(work: Work) -> None:
    """A child in the session, and one that has left it, count for the worker; the test's own process does not."""
    code = """
for leave in (False, True):
    if os.fork() == 0:
        if leave: os.setsid()
        end = time.process_time() + 0.3
        while time.process_time() < end: pass
        say('x' * 1000)
        os._exit(len(os.read(0, 1)))  # at the end of the test, which closes the pipe
wait()
"""
    worker = work(None, code)
    assert [worker.next_word() for _ in range(2)] == 2 * ["x" * 1000]
    found = activity_of({worker.pid})
    assert found.keys() == {worker.pid}
    assert found[worker.pid].cpu_seconds >= 0.5
    assert found[worker.pid].written_bytes >= 2000


# --- real workers ---------------------------------------------------------------------------------------------------

COMPUTES = "while True: pass"
PRINTS = "while True: os.write(2, b''); sys.stdout.write('.'); sys.stdout.flush(); time.sleep(0.2)"
LOADS = "if os.fork() == 0:\n    while True: pass\ntime.sleep(1000)"
STOPPED = f"os.kill(os.getpid(), {int(signal.SIGSTOP)})"


def test_a_silent_worker_is_found_among_those_that_work_in_their_ways(view: View, watch: Watch, work: Work) -> None:
    workers = [work(None, code) for code in (COMPUTES, PRINTS, STOPPED, LOADS)]
    view.has(*(worker.pid for worker in workers))
    watch(hang_after=1.5)
    for report in reports_until(view, 3.0):
        assert (report.local_rank, report.pid, report.scope) == (2, workers[2].pid, "silence")
        assert report.problem.startswith("no CPU used and no output written for ")
        assert "rank" not in report.problem


def test_a_growing_log_is_output(view: View, watch: Watch, work: Work, tmp_path: Path) -> None:
    """Where there are log files they count, and writing elsewhere does not."""
    logs = [tmp_path / name for name in ("stdout", "stderr")]
    elsewhere = f"while True: os.write(1, b'.'); open({str(tmp_path / 'other')!r}, 'a').write('.'); time.sleep(0.3)"
    worker = work(None, elsewhere)
    for log in logs:
        log.touch()
    view.has(worker.pid, stdout=str(logs[0]), stderr=str(logs[1]))
    watch(hang_after=1.5)
    assert view.report().pid == worker.pid


@pytest.mark.slow
def test_the_hung_worker_is_told_from_the_one_that_waits_for_it(view: View, watch: Watch, work: Work) -> None:
    """Two workers import torch and meet in a gloo collective, where one never comes; the other falls silent later."""
    code = """
import torch, torch.distributed as dist
dist.init_process_group('gloo')
dist.barrier()
say('met')
if dist.get_rank() == 1:
    time.sleep(1000)
end = time.process_time() + 1.5
while time.process_time() < end: pass
dist.all_reduce(torch.ones(4))
"""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    workers = [work(None, code, **shared, RANK=str(rank)) for rank in range(2)]
    assert [worker.next_word() for worker in workers] == ["met", "met"]
    view.has(*(worker.pid for worker in workers))
    watch(hang_after=3.0)
    assert view.report().pid == workers[1].pid


# --- uninterruptible waits ------------------------------------------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[Callable[[int], None]]:
    """``frozen(pid)`` puts a process into an uninterruptible wait; it is thawed, and dead, at the end."""
    root = Path("/sys/fs/cgroup/freezer")
    group = root / f"quorate-{os.urandom(4).hex()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no process can be frozen here: {error}")
    pids: list[int] = []

    def freeze(pid: int) -> None:
        pids.append(pid)
        (group / "tasks").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (group / "freezer.state").read_text().strip() == "FROZEN")

    yield freeze
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    (group / "freezer.state").write_text("THAWED")
    wait_until(lambda: not (group / "tasks").read_text())
    group.rmdir()


def test_a_worker_that_waits_in_the_kernel_for_too_long_is_reported(
    view: View, watch: Watch, work: Work, frozen: Callable[[int], None]
) -> None:
    # Some versions of Python sleep by select(), which is frozen on its way out of the kernel and not where it waits.
    worker = work(None, "say('here'); os.execvp('sleep', ['sleep', '1000'])")
    assert worker.next_word() == "here"
    wait_until(lambda: "nanosleep" in Path(f"/proc/{worker.pid}/wchan").read_text())
    watch({"TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT": "0.5"})
    frozen(worker.pid)
    report = view.report()
    assert (report.pid, report.scope) == (worker.pid, "kernel wait")
    where = "hrtimer_nanosleep"
    assert report.problem.startswith(f"process {worker.pid} has been in an uninterruptible wait of the kernel (")
    assert where in report.problem
