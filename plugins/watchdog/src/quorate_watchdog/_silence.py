"""Finds workers that hang without a line of their code: no CPU used and no output written for a while.

Also workers in an uninterruptible wait of the kernel.  A thread looks four times within the time that was asked for,
because silence gives nothing to wait for; without the flags no thread runs.  What does not live here: how the
activity of workers is measured (:mod:`._activity`).
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import final

from quorate.clock import LONGEST_WAIT_SECONDS, monotonic
from quorate.proc import kernel_wait_of, state_of
from quorate.services import AgentView, HangReport, WorkerSnapshot

from ._activity import ProcessTimes, activity_of
from ._server import CLOSE_SECONDS

_LOOKS = 4
#: The kernel's state of a process in an uninterruptible wait (proc(5)).
_UNINTERRUPTIBLE = "D"
#: Libraries' threads in a waiting worker wake up now and then: less than this share of a core is silence.
_IDLE_SHARE = 0.01
#: The kernel counts in ticks, mostly of 10 ms; a few of them are noise.
_IDLE_SECONDS = 0.03


@final
class Record:
    """What is known of one worker: its totals when it last was active, and when that was, in monotonic seconds."""

    __slots__ = ("active_at", "cpu_seconds", "looked_at", "looked_cpu_seconds", "output")

    def __init__(self, now: float, times: ProcessTimes, output: int) -> None:
        self.active_at = self.looked_at = now
        self.cpu_seconds = self.looked_cpu_seconds = times.cpu_seconds
        self.output = output

    def look(self, now: float, times: ProcessTimes, output: int) -> float:
        """Take another look; return for how many seconds it has been silent.

        In the interval in which it fell silent it is assumed to have worked first and waited then.  So of two that
        fell silent in the same interval, the one that had worked less was the first.
        """
        used = times.cpu_seconds - self.cpu_seconds
        if output != self.output or times.is_runnable or used < 0.0:
            self._note_active(now, times, output)
        elif used > _IDLE_SECONDS + _IDLE_SHARE * (now - self.active_at):
            lately = times.cpu_seconds - self.looked_cpu_seconds
            self._note_active(min(now, self.looked_at + max(0.0, lately)), times, output)
        self.looked_at, self.looked_cpu_seconds = now, times.cpu_seconds
        return now - self.active_at

    def _note_active(self, at: float, times: ProcessTimes, output: int) -> None:
        self.active_at, self.cpu_seconds, self.output = at, times.cpu_seconds, output


@final
class SilenceWatch:
    """Watches until :meth:`close`.

    Arguments:
        agent: its workers are watched, and it receives the reports.
        hang_after: seconds of silence, 0 for any.
        kernel_wait: seconds in an uninterruptible wait, 0 for any.
    """

    def __init__(self, agent: AgentView, hang_after: float, kernel_wait: float) -> None:
        self._agent, self._hang_after, self._kernel_wait = agent, hang_after, kernel_wait
        shortest = min(seconds for seconds in (hang_after, kernel_wait) if seconds > 0.0)
        self._interval = min(shortest / _LOOKS, LONGEST_WAIT_SECONDS)
        self._records: dict[int, Record] = {}
        self._waiting_since: dict[int, float] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quorate-silence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; one that waits for a log on a dead file server is left running."""
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # a watchdog that has ended in silence would let workers hang for ever
            self._agent.report_unhealthy(f"the watchdog has failed: {type(error).__name__}: {error}")

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the agent's own thread
        last = monotonic()
        while not self._closed.wait(self._interval):
            now = monotonic()
            if now - last > 2.0 * self._interval + 1.0:
                self._forget()  # the agent, or the whole machine, was suspended: nothing is known of that time
            last = now
            try:
                self._look(now)
            except OSError:
                continue  # out of descriptors, say; the next look may succeed

    def _look(self, now: float) -> None:
        snapshot = self._agent.snapshot()
        workers = {worker.pid: worker for worker in snapshot.workers if worker.is_working}
        if not snapshot.is_running or not workers:
            self._forget()
            return
        if self._kernel_wait > 0.0:
            self._look_for_kernel_waits(now, workers)
        if self._hang_after > 0.0:
            self._look_for_silence(now, workers)

    def _forget(self) -> None:
        self._records.clear()
        self._waiting_since.clear()

    def _look_for_kernel_waits(self, now: float, workers: dict[int, WorkerSnapshot]) -> None:
        waiting = [pid for pid in workers if state_of(pid) == _UNINTERRUPTIBLE]
        self._waiting_since = {pid: self._waiting_since.get(pid, now) for pid in waiting}
        for pid, since in self._waiting_since.items():
            seconds = now - since
            if seconds >= self._kernel_wait:
                problem = (
                    f"process {pid} has been in an uninterruptible wait of the kernel ({kernel_wait_of(pid)}) "
                    f"for {seconds:.1f} s"
                )
                report = HangReport(workers[pid].local_rank, pid, problem, "kernel wait", seconds - self._kernel_wait)
                self._agent.report_hang(report)

    def _look_for_silence(self, now: float, workers: dict[int, WorkerSnapshot]) -> None:
        activity = activity_of(workers)
        silent: dict[int, float] = {}
        for pid, times in activity.items():
            output = _output_of(workers[pid], times)
            record = self._records.get(pid)
            if record is None:
                record = self._records[pid] = Record(now, times, output)
            silent[pid] = record.look(now, times, output)
        for pid in self._records.keys() - activity.keys():
            del self._records[pid]
        found = judge(silent, self._hang_after, self._interval)
        if found:
            first, *others = (workers[pid] for pid in found)
            problem = f"no CPU used and no output written for {silent[first.pid]:.1f} s"
            if others:
                ranks = ", ".join(str(worker.rank) for worker in others)
                problem += f" (silent since about the same time, perhaps waiting for it: rank {ranks})"
            overdue = silent[first.pid] - self._hang_after
            self._agent.report_hang(HangReport(first.local_rank, first.pid, problem, "silence", overdue))


def judge(silent: dict[int, float], hang_after: float, interval: float) -> list[int]:
    """Return the workers to report, the longest silent first.

    Arguments:
        silent: worker -> seconds for which it has been silent.
        hang_after: seconds of silence that make a hang.
        interval: seconds between two looks; workers that fell silent within one of the first are reported with it,
            because it is not known which came first.
    """
    if not silent:
        return []
    order = sorted(silent, key=lambda pid: -silent[pid])
    longest = silent[order[0]]
    if longest < hang_after:
        return []
    return [pid for pid in order if longest - silent[pid] <= interval]


def _output_of(worker: WorkerSnapshot, times: ProcessTimes) -> int:
    """Return a number that changes with the worker's output.

    It is the size of its log files if both streams have one, else what all its processes have written to anything.
    """
    if not worker.stdout or not worker.stderr:
        return times.written_bytes
    size = 0
    for path in (worker.stdout, worker.stderr):
        with suppress(OSError):
            size += os.stat(path).st_size
    return size
