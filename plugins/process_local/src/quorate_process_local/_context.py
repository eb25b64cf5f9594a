"""The running workers of one node in one round: watching, stopping, sweeping.

Only the agent's thread calls in here, and nothing but :meth:`LocalContext.close` waits: everything that can happen
(a process ends, output is drained) makes a descriptor in one epoll readable.  Starting workers is the starters'
business, reading their output the pump's.

The life of a context::

    running ──all ended, or stop()──► stopping ──grace over──► killing ──nothing left, or 5 s──► swept ──drained──► gone

A worker whose function has returned stays (:mod:`._results`) until all that still run have delivered their results, or
until it is stopped.  Its result decides, however its process ends.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from quorate.clock import monotonic
from quorate.errors import StartError
from quorate.failures import signal_name
from quorate.records import WorkerExited, WorkerLaunch

from ._fds import forget, hold_with, release, warn
from ._guardian import Guardian
from ._leftovers import MARKER_VARIABLE, Leftover, find_leftovers, kernel_wait_of, marker_of, state_of
from ._pump import Pump
from ._stack_signal import STACK_SIGNAL, STACK_SIGNAL_VARIABLE
from ._streams import Output, plan_output
from ._workers import Process, Worker

if TYPE_CHECKING:
    from quorate.starter import StarterRequest

    from ._deliveries import Deliveries

__all__ = ["LocalContext"]

#: How long after SIGKILL a process may stay (one that hangs in the kernel) before it is given up.
_KILL_PATIENCE_SECONDS = 5.0
#: How long a worker's report waits for the rest of its stderr.
_TAIL_PATIENCE_SECONDS = 1.0
#: How often to look where the kernel has no pidfds.
_FALL_BACK_SECONDS = 0.05
_CLOSE_PATIENCE_SECONDS = 2.0


@final
class LocalContext:
    """Implements :class:`quorate.starter.ProcessContext`; starters fill it by :meth:`launch`, then :meth:`begin`."""

    def __init__(self, request: StarterRequest) -> None:
        self._request = request
        self._owner = os.getpid()
        self._id = os.urandom(12).hex()
        self._workers: list[Worker] = []
        self._watched: dict[int, Worker | Leftover | Callable[[], None]] = {}
        self._leftovers: dict[int, Leftover] = {}
        self._ended: list[Worker] = []
        self._signal = 0
        self._kill_at: float | None = None
        self._deliveries: Deliveries | None = None
        #: By when workers that were let go must have ended by themselves.
        self._end_by: float | None = None
        self._is_killing = self._must_look = self._is_swept = self._is_closed = False
        self._has_news = False
        self._ignored: set[int] = set()
        self._left_behind: list[str] = []
        self._epoll = select.epoll()
        hold_with(self._epoll.fileno(), self._epoll.close)
        self._guardian = Guardian(f"{self._id}.")
        self._pump = Pump()
        self._watch(self._pump.notice, self._take_notice)

    # --- filling it -----------------------------------------------------------------------------------------------

    def expect_results(self) -> bytes:
        """Return the address for the results of functions; to be called before :meth:`launch`.

        Raises:
            StartError: there is no descriptor left for it.
        """
        from ._deliveries import Deliveries  # commands have no use for it

        try:
            self._deliveries = Deliveries(self._workers, self._watch, self._unwatch, self._is_stopping)
        except OSError as error:
            raise StartError(f"no worker can be started: {error.strerror or error}") from error
        return self._deliveries.address

    def launch(self, launch: WorkerLaunch, start: Callable[[WorkerLaunch, dict[str, str], Output], Process]) -> None:
        """Start one worker: ``start(launch, environment, output)`` makes the process.

        Raises:
            StartError: it cannot be started.
        """
        environment = dict(launch.environment)
        environment["QUORATE_AGENT_TOKEN"] = self._request.token
        environment[STACK_SIGNAL_VARIABLE] = str(STACK_SIGNAL)
        environment[MARKER_VARIABLE] = marker_of(self._id, launch.local_rank, environment)
        output = plan_output(launch, self._pump.consoles, self._pump.copies)
        self._pump.add(output.streams)
        try:
            process = start(launch, environment, output)
        except OSError as error:
            raise StartError(
                f"the worker of local rank {launch.local_rank} cannot be started: {error.strerror or error}",
                local_rank=launch.local_rank,
            ) from error
        finally:
            output.close()
        worker = Worker(launch.local_rank, process, output.errors, output.error_path)
        self._workers.append(worker)
        self._guardian.watch(process.pid)
        self._watch(process.descriptor, worker)

    def begin(self) -> None:
        """All workers are started: read their output (no thread may exist before a fork)."""
        self._pump.start()

    # --- the interface of the core --------------------------------------------------------------------------------

    def fileno(self) -> int:
        """See :class:`quorate.starter.ProcessContext`, as for all methods below."""
        return self._epoll.fileno()

    def pids(self) -> Mapping[int, int]:
        return {worker.local_rank: worker.pid for worker in self._workers}

    def wake_at(self) -> float | None:
        if self._has_news:
            return 0.0  # long past: at once
        times = [worker.deadline for worker in self._ended[:1]]
        if not self._is_swept:
            if self._kill_at is not None:
                times.append(self._kill_at + (_KILL_PATIENCE_SECONDS if self._is_killing else 0.0))
            elif self._end_by is not None and self._running():
                times.append(self._end_by)
            if self._must_look_again():
                times.append(monotonic() + _FALL_BACK_SECONDS)
        return min(times, default=None)

    def _must_look_again(self) -> bool:
        """Return whether something may happen that makes no descriptor readable."""
        return (
            any(worker.process.descriptor < 0 for worker in self._running())
            or any(leftover.pidfd < 0 for leftover in self._leftovers.values())
            or (self._deliveries is not None and self._deliveries.is_short)
        )

    def advance(self, now: float) -> Sequence[WorkerExited]:
        self._has_news = False
        self._collect(now)
        self._go_on(now)
        reports = []
        while self._ended and self._ended[0].is_reportable(now):
            worker = self._ended.pop(0)
            reports.append(worker.report())
            if self._is_swept:
                worker.process.release()
        return reports

    def is_gone(self) -> bool:
        return self._is_swept and not self._ended and self._pump.is_done

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        # Who has ended by now was not stopped.  The descriptor may no longer tell of what is seen here.
        self._has_news = True
        self._collect(now)
        if self._is_swept or self._is_killing:
            return
        kill_at = now + max(0.0, grace_seconds)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._send(signal_number)
        self._let_go(worker for worker in self._running() if worker.result is not None)
        self._go_on(now)

    def delivered(self) -> Sequence[int]:
        """See :class:`quorate.starter.DeliversResults`."""
        return [worker.local_rank for worker in self._running() if worker.result is not None]

    def dump_stacks(self, hung_local_rank: int, timeout: float) -> Sequence[str]:
        """See :class:`quorate.starter.StackDumper`; the one method that other threads may call."""
        from ._stacks import dump_stacks

        running = [
            (worker.local_rank, worker.pid, worker.error_path) for worker in self._running() if worker.result is None
        ]
        dump_stacks(running, hung_local_rank, timeout)
        return next((worker.last_lines() for worker in self._workers if worker.local_rank == hung_local_rank), ())

    def left_behind(self) -> Sequence[str]:
        return tuple(self._left_behind)

    def close(self) -> None:
        if self._is_closed or self._owner != os.getpid():
            return
        self._is_closed = True
        now = monotonic()
        self.stop(signal.SIGKILL, 0.0, now)
        self._has_news = False
        while not self._is_swept:
            wake_at = self.wake_at()
            self._epoll.poll(None if wake_at is None else max(0.0, wake_at - now))
            now = monotonic()
            self._collect(now)
            self._go_on(now)
        self._pump.close(_CLOSE_PATIENCE_SECONDS)
        self._guardian.close()
        forget(self._epoll.fileno())
        self._epoll.close()
        for worker in self._workers:
            worker.process.release()

    # --- noticing -------------------------------------------------------------------------------------------------

    def _watch(self, descriptor: int, what: Worker | Leftover | Callable[[], None]) -> None:
        if descriptor >= 0:
            self._watched[descriptor] = what
            self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, self) is not self:
            self._epoll.unregister(descriptor)

    def _take_notice(self) -> None:
        os.eventfd_read(self._pump.notice)

    def _is_stopping(self) -> bool:
        return self._kill_at is not None

    def _running(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.exit_code is None]

    def _collect(self, now: float) -> None:
        """Note all that has ended; the kernel lists descriptors in the order in which they became ready."""
        if self._epoll.closed:
            return
        for descriptor, _ in self._epoll.poll(0):
            what = self._watched.get(descriptor)
            if what is None:
                continue  # closed because of what was seen just before
            if isinstance(what, Worker):
                self._note_exit(what, now)
            elif isinstance(what, Leftover):
                self._drop(what)
            else:
                what()
        if self._deliveries is not None and self._deliveries.is_short:
            self._deliveries.admit()
        for worker in self._running():
            if worker.process.descriptor < 0:
                self._note_exit(worker, now)
        for leftover in list(self._leftovers.values()):
            if leftover.pidfd < 0 and leftover.is_gone():
                self._drop(leftover)
        running = self._running()
        if self._end_by is None and running and all(worker.result is not None for worker in running):
            self._let_go(running)
            self._end_by = now + self._request.term_grace_seconds

    def _let_go(self, workers: Iterable[Worker]) -> None:
        if self._deliveries is not None:
            for worker in workers:
                self._deliveries.let_go(worker)

    def _note_exit(self, worker: Worker, now: float) -> None:
        exit_code = worker.process.poll()
        if exit_code is not None:
            self._end(worker, exit_code, now)

    def _end(self, worker: Worker, exit_code: int, now: float) -> None:
        self._unwatch(worker.process.descriptor)
        was_stopped = self._kill_at is not None
        if self._deliveries is not None:
            self._deliveries.hear_last(worker)
        worker.note_exit(exit_code, was_stopped, now + _TAIL_PATIENCE_SECONDS)
        if worker.exit_code == 0 and exit_code != 0 and not was_stopped:
            how = f"by {signal_name(exit_code)}" if exit_code < 0 else f"with exit code {exit_code}"
            warn(f"local rank {worker.local_rank} ended {how} after its function had returned; the result counts")
        if worker.exit_code != 0 and worker.errors is not None:
            self._pump.drain(worker.errors)
        self._ended.append(worker)
        if not worker.process.is_held:
            self._remember_session(worker)
        self._must_look = self._must_look or not self._running()

    def _remember_session(self, worker: Worker) -> None:
        """Hold on to what is in an ended worker's session now, because its number may soon be somebody else's.

        As long as one of them lives the number cannot pass on, and :meth:`_look` goes by it.
        """
        known = {other.pid for other in self._workers} | self._leftovers.keys()
        for leftover in find_leftovers(self._id, {worker.pid: worker.local_rank}, known):
            if leftover.session != worker.pid:
                release(leftover.pidfd)
                continue
            self._leftovers[leftover.pid] = leftover
            self._watch(leftover.pidfd, leftover)
            if self._signal:
                leftover.send(self._signal)

    def _drop(self, leftover: Leftover) -> None:
        del self._leftovers[leftover.pid]
        self._unwatch(leftover.pidfd)
        leftover.release()
        self._must_look = self._must_look or not self._leftovers

    # --- stopping -------------------------------------------------------------------------------------------------

    def _send(self, signal_number: int) -> None:
        """Signal the groups of running workers and what ended ones left; a repeated signal is not sent again."""
        if signal_number != self._signal:
            self._signal = signal_number
            for worker in self._running():
                _signal_group(worker.pid, signal_number)
            for leftover in self._leftovers.values():
                leftover.send(signal_number)
        self._must_look = True

    def _go_on(self, now: float) -> None:
        """Carry the sweep forward as far as it can go now."""
        if self._is_swept:
            return
        if self._kill_at is None:
            running = self._running()
            if running and (self._end_by is None or now < self._end_by):
                return
            if running:
                warn(_stays(running, self._request.term_grace_seconds))
            # All ended by themselves: what they left is asked to go, with the grace of a normal stop.
            self._kill_at = now + self._request.term_grace_seconds
            self._send(signal.SIGTERM)
        if not self._is_killing and now >= self._kill_at:
            self._is_killing = True
            self._kill_at = now
            self._send(signal.SIGKILL)
        if self._must_look:
            self._look()
        if not self._running() and not self._leftovers:
            self._finish_sweep()
        elif self._is_killing and now >= self._kill_at + _KILL_PATIENCE_SECONDS:
            self._give_up(now)

    def _look(self) -> None:
        """Find leftovers of ended workers (of all, once it is time to kill) and signal those not known yet."""
        self._must_look = False
        running = {worker.local_rank for worker in self._running()}
        sessions = {
            worker.pid: worker.local_rank
            for worker in self._workers
            if worker.exit_code is None
            or worker.process.is_held
            or any(leftover.session == worker.pid for leftover in self._leftovers.values())
        }
        known = {worker.pid for worker in self._workers} | self._leftovers.keys() | self._ignored
        for leftover in find_leftovers(self._id, sessions, known):
            if leftover.local_rank in running and not self._is_killing:
                release(leftover.pidfd)  # a running worker may need it to come to its end
            elif leftover.send(self._signal):
                self._leftovers[leftover.pid] = leftover
                self._watch(leftover.pidfd, leftover)
            else:
                self._ignored.add(leftover.pid)
                warn(f"process {leftover.pid}, left by local rank {leftover.local_rank}, runs as another user")
                release(leftover.pidfd)

    def _finish_sweep(self) -> None:
        self._is_swept = True
        if not self._pump.is_done:
            self._pump.finish()
        if self._deliveries is not None:
            self._deliveries.close()
            self._deliveries = None
        for worker in self._workers:
            if worker not in self._ended:
                worker.process.release()

    def _give_up(self, now: float) -> None:
        for leftover in list(self._leftovers.values()):
            self._note_left_behind(f"{_stuck(leftover.pid)}; local rank {leftover.local_rank} left it")
            self._drop(leftover)
        for worker in self._running():
            worker.problem = _stuck(worker.pid)
            self._note_left_behind(f"{worker.problem}; it was local rank {worker.local_rank}")
            self._end(worker, -signal.SIGKILL, now)
        self._finish_sweep()

    def _note_left_behind(self, sentence: str) -> None:
        self._left_behind.append(sentence)
        warn(sentence)


def _signal_group(pid: int, signal_number: int) -> None:
    try:
        os.killpg(pid, signal_number)
    except ProcessLookupError:
        # A forked worker leads no group yet in its first moments.
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            pass
    except PermissionError:
        warn(f"worker {pid} runs as another user and cannot be signalled")


def _stays(workers: Sequence[Worker], seconds: float) -> str:
    ranks = ", ".join(str(worker.local_rank) for worker in workers)
    return (
        f"local rank {ranks} did not end within {seconds:g} s of the function's return and is terminated; the result "
        "counts (threads that are no daemons keep a process; a DDP object or process group that is left may hang it)"
    )


def _stuck(pid: int) -> str:
    state = state_of(pid) or "gone"
    seconds = f"{_KILL_PATIENCE_SECONDS:g} s"
    where = f"process {pid} (state {state}, waits in {kernel_wait_of(pid)})"
    return f"{where} did not end within {seconds} of SIGKILL and is left to the kernel"
