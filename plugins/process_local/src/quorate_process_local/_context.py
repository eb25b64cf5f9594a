"""The running workers of one node in one round: watching, stopping, sweeping.

Only the agent's thread calls in here, and only :meth:`LocalContext.close` waits: everything that can happen (a process
ends, output is drained) makes a descriptor in one epoll readable.  What does not live here: starting workers (the
starters), reading their output (:mod:`._pump`), finding what they leave behind (:mod:`._sweep`).

The life of a context::

    running ──all ended, or stop()──► stopping ──grace over──► killing ──nothing left, or 5 s──► swept ──drained──► gone

After release() it does the same for the workers that are not live, and then goes on with those that have left their
world: it is *settled*, and runs again after assign().

A worker whose function has returned stays (:mod:`._results`) until all that still run have delivered their results, or
until it is stopped.  Its result decides, however its process ends.  The worker of rank 0 stays until :meth:`stop` where
the store that it serves may be used by workers of other nodes; it is reported once all have delivered.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, final

from quorate.clock import monotonic, seconds_until
from quorate.errors import StartError
from quorate.notices import warn
from quorate.proc import forget, hold
from quorate.records import WorkerExited, WorkerLaunch
from quorate.starter import StarterRequest

from ._commands import cannot_start, remedy_for
from ._families import Family
from ._guardian import Guardian
from ._leftovers import Leftover
from ._live import Live
from ._marks import marked_environment
from ._pump import Pump
from ._reserve import Reserve
from ._streams import Output, captures_stderr, plan_output
from ._sweep import KILL_TIMEOUT_SECONDS, Sweep, why_stuck
from ._workers import Process, Worker, may_serve_other_nodes, why_terminated

if TYPE_CHECKING:
    from ._deliveries import Deliveries  # imported for functions only

#: How long a worker's report waits for the rest of its stderr.
_TAIL_TIMEOUT_SECONDS = 1.0
#: How often to look where no descriptor shows an end (without pidfds, or without descriptors).
_POLL_INTERVAL_SECONDS = 0.05
_CLOSE_TIMEOUT_SECONDS = 2.0
#: Descriptors that are kept back, so that a context can be swept and closed when all others are taken.
_RESERVED_DESCRIPTORS = 4


@final
class LocalContext(Family):
    """Implements :class:`quorate.starter.ProcessContext`; starters fill it by :meth:`launch`, then :meth:`begin`."""

    def __init__(self, request: StarterRequest) -> None:
        self._request = request
        self._owner = os.getpid()
        self._id = os.urandom(12).hex()
        self._workers: list[Worker] = []
        self._watched: dict[int, Worker | Leftover | Callable[[], None]] = {}
        self._ended: list[Worker] = []
        self._signal = 0
        self._kill_at: float | None = None
        self._deliveries: Deliveries | None = None
        #: By when workers that were released must have ended by themselves.
        self._end_by: float | None = None
        self._is_killing = self._is_swept = self._is_closed = self._is_settled = False
        self._grace_seconds = 0.0
        self._has_news = False
        self._left_behind: list[str] = []
        with ExitStack() as undo:
            self._epoll = select.epoll()
            hold(self._epoll.fileno(), self._epoll.close)
            undo.callback(self._close_epoll)
            self._reserve = Reserve(_RESERVED_DESCRIPTORS)
            undo.callback(self._reserve.release)
            self._guardian = Guardian(f"{self._id}.")
            undo.callback(self._guardian.close)
            self._pump = Pump()
            undo.callback(self._pump.close, 0.0)
            self.live = Live(
                self._workers, self._watch, self._unwatch, request.loss_timeout, lambda worker: self._kill_at is None
            )
            undo.pop_all()
        self._sweep = Sweep(self._id, self._workers, self._guardian, self._watch, self._unwatch)
        self._watch(self._pump.notice, self._pump.take_notice)

    # --- filling it -----------------------------------------------------------------------------------------------

    def expect_results(self, stall_seconds: float) -> bytes:
        """Return the address for the results of functions, which may stall so long; called before :meth:`launch`.

        Raises:
            OSError: there is no descriptor left for it.
        """
        from ._deliveries import Deliveries  # with pickle, which commands do not need

        self._deliveries = Deliveries(self._workers, self._watch, self._unwatch, self._is_stopping, stall_seconds)
        return self._deliveries.address

    def launch(self, launch: WorkerLaunch, start: Callable[[WorkerLaunch, dict[str, str], Output], Process]) -> None:
        """Start one worker: ``start(launch, environment, output)`` makes the process.

        Raises:
            StartError: it cannot be started.
        """
        environment = marked_environment(launch, self._request.token, self._id, self.live.address)
        try:
            output = plan_output(launch, self._pump.consoles, self._pump.copies, captures_stderr(self._request))
            try:
                self._pump.add(output.streams)
                if self._deliveries is not None:
                    self._deliveries.reserve()
                process = start(launch, environment, output)
            finally:
                output.close()
        except OSError as error:
            raise StartError(
                f"the worker of local rank {launch.local_rank} cannot be started: "
                f"{remedy_for(error) or error.strerror or error}",
                local_rank=launch.local_rank,
            ) from error
        worker = Worker(launch.local_rank, process, output, launch.environment)
        worker.is_kept = self._deliveries is not None and may_serve_other_nodes(environment)
        self._workers.append(worker)
        self._guardian.watch(process.pid)
        self._watch(process.descriptor, worker)

    def begin(self) -> None:
        """All workers are started: read their output (a fork must not happen while a thread runs).

        Raises:
            StartError: no thread can be started.
        """
        try:
            self._pump.start()
        except RuntimeError as error:
            raise cannot_start(error) from error

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
            times += [worker.leave_by for worker in self._running() if worker.leave_by is not None]
            if self._kill_at is not None and (self._to_stop() or not self._sweep.is_empty):
                times.append(self._kill_at + (KILL_TIMEOUT_SECONDS if self._is_killing else 0.0))
            elif self._end_by is not None and self._unreported():
                times.append(self._end_by)
            if self._deliveries is not None and (deadline := self._deliveries.wake_at()) is not None:
                times.append(deadline)
            if self._needs_polling():
                times.append(monotonic() + _POLL_INTERVAL_SECONDS)
        return min(times, default=None)

    def _needs_polling(self) -> bool:
        """Return whether something may happen that makes no descriptor readable."""
        return (
            any(worker.process.descriptor < 0 for worker in self._running())
            or self._sweep.needs_polling
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
            if self._is_swept or worker.is_dropped:
                self._release(worker)
        return reports

    def is_gone(self) -> bool:
        return self._is_swept and not self._ended and self._pump.is_done

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        # A worker that has ended by now was not stopped.  Its descriptor is read here, so the next advance() must not
        # wait for it.
        self._has_news = True
        self._collect(now)
        if self._is_swept or (self._is_killing and not any(worker.is_spared for worker in self._workers)):
            return
        self._is_settled = self._is_killing = False
        for worker in self._workers:
            worker.leave_by, worker.has_left = None, False
        kill_at = now + max(0.0, grace_seconds)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._send(signal_number)
        self._release_from_wait(worker for worker in self._running() if worker.result is not None)
        self._go_on(now)

    def release(
        self, signal_number: int, grace_seconds: float, release_seconds: float, given_up: Collection[int], now: float
    ) -> None:
        """See :class:`quorate.starter.ReleasesWorkers`."""
        self._has_news = True
        self._collect(now)
        if self._is_swept or self._kill_at is not None:
            return
        self._is_settled, self._grace_seconds = False, grace_seconds
        self.live.ask_to_leave(now + release_seconds, given_up)
        self._kill_at = now + max(0.0, grace_seconds)
        self._send(signal_number)
        self._release_from_wait(worker for worker in self._running() if worker.result is not None)
        self._go_on(now)

    def released(self) -> Sequence[int] | None:
        """See :class:`quorate.starter.ReleasesWorkers`."""
        if not self._is_settled:
            return None
        return [worker.local_rank for worker in self._running() if worker.has_left]

    def assign(self, launch: WorkerLaunch) -> None:
        """See :class:`quorate.starter.ReleasesWorkers`."""
        self._is_settled = False
        for worker in self._running():
            if worker.local_rank == launch.local_rank:
                worker.is_kept = self._deliveries is not None and may_serve_other_nodes(launch.environment)
                self.live.assign(worker, launch.environment)

    def delivered(self) -> Sequence[int]:
        """See :class:`quorate.starter.DeliversResults`."""
        return [worker.local_rank for worker in self._unreported() if worker.result is not None]

    def dump_stacks(self, hung_local_rank: int, timeout: float) -> Sequence[str]:
        """See :class:`quorate.starter.StackDumper`; the one method that other threads may call."""
        from ._stacks import dump_stacks_of  # with subprocess, and only when a worker hangs

        return dump_stacks_of(self._workers, hung_local_rank, timeout)

    def left_behind(self) -> Sequence[str]:
        return tuple(self._left_behind)

    def close(self) -> None:
        if self._is_closed or self._owner != os.getpid():
            return
        self._is_closed = True
        self._reserve.release()
        now = monotonic()
        self.stop(signal.SIGKILL, 0.0, now)
        self._has_news = False
        while not self._is_swept:
            wake_at = self.wake_at()
            self._epoll.poll(None if wake_at is None else seconds_until(wake_at))
            now = monotonic()
            self._collect(now)
            self._go_on(now)
        self.live.close()
        self._pump.close(_CLOSE_TIMEOUT_SECONDS)
        self._guardian.close()
        self._close_epoll()
        for worker in self._workers:
            worker.process.release()

    def _close_epoll(self) -> None:
        forget(self._epoll.fileno())
        self._epoll.close()

    # --- noticing -------------------------------------------------------------------------------------------------

    def _watch(self, descriptor: int, what: Worker | Leftover | Callable[[], None]) -> None:
        if descriptor >= 0:
            self._watched[descriptor] = what
            self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, self) is not self:
            self._epoll.unregister(descriptor)

    def _is_stopping(self) -> bool:
        return self._kill_at is not None

    def _running(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.exit_code is None]

    def _unreported(self) -> list[Worker]:
        return [worker for worker in self._running() if not worker.is_reported]

    def _to_stop(self) -> list[Worker]:
        return [worker for worker in self._running() if not worker.is_spared]

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
                self._sweep.drop(what)
            else:
                what()
        if self._deliveries is not None:
            if self._deliveries.is_short:
                self._deliveries.admit()
            self._deliveries.expire(now)
        for worker in self._running():
            if worker.process.descriptor < 0:
                self._note_exit(worker, now)
        self._sweep.collect()
        running = self._running()
        if self._end_by is None and running and all(worker.result is not None for worker in running):
            kept = [worker for worker in running if worker.is_kept and worker.connection and not self._is_stopping()]
            self._release_from_wait(worker for worker in running if worker not in kept)
            for worker in kept:
                worker.note_success()
                self._ended.append(worker)
            self._end_by = now + self._request.term_grace_seconds

    def _release_from_wait(self, workers: Iterable[Worker]) -> None:
        if self._deliveries is not None:
            for worker in workers:
                self._deliveries.release(worker)

    def _note_exit(self, worker: Worker, now: float) -> None:
        exit_code = worker.process.poll()
        if exit_code is not None:
            self._end(worker, exit_code, now)

    def _end(self, worker: Worker, exit_code: int, now: float) -> None:
        self._unwatch(worker.process.descriptor)
        was_stopped = self._kill_at is not None
        if self._deliveries is not None:
            self._deliveries.receive_last(worker)
        worker.note_exit(exit_code, was_stopped, now + _TAIL_TIMEOUT_SECONDS)
        self.live.drop(worker)
        if worker.exit_code != 0 and worker.output.errors is not None:
            self._pump.drain(worker.output.errors)
        if not worker.is_reported:
            self._ended.append(worker)
        if not worker.process.is_held:
            self._sweep.note_end(worker, self._signal)
        self._sweep.must_look |= was_stopped or self._is_settled or not self._running()  # its family is told next

    # --- stopping -------------------------------------------------------------------------------------------------

    def _send(self, signal_number: int) -> None:
        """Tell the workers to stop, and what ended ones left; who has been told is not told again, but killed."""
        for worker in self._to_stop():
            if signal_number == signal.SIGKILL:
                worker.kill()
            elif not worker.is_reported:  # the others come to their end by themselves
                worker.tell(signal_number)
        if signal_number == signal.SIGKILL or not self._signal:
            self._signal = signal_number
            self._sweep.send(signal_number)
        self._sweep.must_look = True

    def _go_on(self, now: float) -> None:
        """Carry the sweep forward as far as it can go now."""
        if self._is_swept:
            return
        self._stop_late(now)
        if self._kill_at is None:
            running = self._unreported()
            if running and (self._end_by is None or now < self._end_by):
                if self._is_settled and self._sweep.must_look:
                    self._sweep.look(signal.SIGKILL, is_killing=False)  # left by one that ended while it waited
                return
            if running:
                warn(why_terminated(running, self._request.term_grace_seconds))
            elif self._running():
                return  # kept until stop()
            # All ended by themselves: what they left gets SIGTERM, and the grace of a normal stop.
            self._sweep.is_naming = all(worker.exit_code == 0 for worker in self._workers)
            self._kill_at = now + self._request.term_grace_seconds
            self._send(signal.SIGTERM)
        if not self._is_killing and now >= self._kill_at:
            self._is_killing = True
            self._kill_at = now
            self._send(signal.SIGKILL)
        if self._sweep.must_look:
            self._sweep.look(self._signal, self._is_killing)
        is_clean = not self._to_stop() and self._sweep.is_empty and not self._sweep.must_look
        if is_clean and all(worker.has_left for worker in self._running()):
            self._settle()
        elif not is_clean and self._is_killing and now >= self._kill_at + KILL_TIMEOUT_SECONDS:
            self._give_up(now)

    def _stop_late(self, now: float) -> None:
        """Stop the workers that did not leave their world in time, with a grace of their own."""
        for worker in self.live.take_late(now):
            self._kill_at, self._is_killing = now + self._grace_seconds, False
            worker.tell(signal.SIGTERM)

    def _settle(self) -> None:
        """All is gone, but for workers that have left their world: go on with these, if there are any."""
        if not self._running():
            self._finish_sweep()
            return
        self._is_settled, self._is_killing = True, False
        self._kill_at, self._signal = None, 0
        for worker in [worker for worker in self._workers if worker.exit_code is not None]:
            self._workers.remove(worker)
            worker.is_dropped = True
            if worker not in self._ended:
                self._release(worker)

    def _finish_sweep(self) -> None:
        self._is_swept = True
        if not self._pump.is_done:
            self._pump.finish()
        if self._deliveries is not None:
            self._deliveries.close()
            self._deliveries = None
        for worker in self._workers:
            if worker not in self._ended:
                self._release(worker)

    def _release(self, worker: Worker) -> None:
        """Reap a worker, after which its number may pass to another process."""
        self._guardian.forget(worker.pid)
        worker.process.release()

    def _give_up(self, now: float) -> None:
        sentences = self._sweep.give_up()
        for worker in self._to_stop():
            worker.problem = why_stuck(worker.pid)
            sentences.append(f"{worker.problem}; it was local rank {worker.local_rank}")
            self._end(worker, -signal.SIGKILL, now)
        for sentence in sentences:
            warn(sentence)
        self._left_behind += sentences
        self._sweep.must_look = False
        self._go_on(now)
