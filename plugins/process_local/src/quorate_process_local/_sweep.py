"""The processes that the ended workers of one context left behind: found, watched, signalled and given up here.

What does not live here: when that is done (:mod:`._context`), and how one is recognised (:mod:`._leftovers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from quorate.notices import note, warn
from quorate.proc import command_of, kernel_wait_of, release, state_of
from quorate.text import printable

from ._guardian import Guardian
from ._leftovers import Leftover, find_leftovers
from ._workers import Worker

#: How long after SIGKILL a process may stay (one that hangs in the kernel) before it is given up.
KILL_TIMEOUT_SECONDS = 5.0

_LONGEST_COMMAND = 120
#: Parts of the commands of the standard library's own servers, which end by themselves with their program.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@final
class Sweep:
    """The known leftovers of one context.

    Arguments:
        context_id: the context's part of the marker.
        workers: the context's, those that are yet to be started included.
        guardian: forgets a session that is empty.
        watch, unwatch: have the context call :meth:`drop` when a leftover has ended.
    """

    def __init__(
        self,
        context_id: str,
        workers: Sequence[Worker],
        guardian: Guardian,
        watch: Callable[[int, Leftover], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._context_id, self._workers, self._guardian = context_id, workers, guardian
        self._watch, self._unwatch = watch, unwatch
        self._leftovers: dict[int, Leftover] = {}
        self._foreign: set[int] = set()
        #: Whether :meth:`look` must be called before all can be swept.
        self.must_look = False
        self._has_no_descriptors = False
        #: Whether to name what is found, because the workers that left it had succeeded.
        self.is_naming = False

    @property
    def is_empty(self) -> bool:
        """Whether no leftover is known that runs."""
        return not self._leftovers

    @property
    def needs_polling(self) -> bool:
        """Whether something may happen that makes no descriptor readable."""
        return self._has_no_descriptors or any(leftover.pidfd < 0 for leftover in self._leftovers.values())

    def note_end(self, worker: Worker, signal_number: int) -> None:
        """Find what is in the session of a worker whose process id is not held, because the number may soon pass on.

        As long as one process of the session lives the number cannot pass on, and :meth:`look` goes by it.
        """
        known = {other.pid for other in self._workers} | self._leftovers.keys()
        try:
            for leftover in find_leftovers(self._context_id, {worker.pid: worker.local_rank}, known):
                if leftover.session != worker.pid:
                    release(leftover.pidfd)
                    continue
                self._add(leftover)
                if signal_number:
                    leftover.send(signal_number)
        except OSError:
            self._has_no_descriptors = True
        self._forget_if_empty(worker.pid)

    def collect(self) -> None:
        """Drop the leftovers that have ended and whose end no descriptor shows."""
        for leftover in list(self._leftovers.values()):
            if leftover.pidfd < 0 and leftover.is_gone():
                self.drop(leftover)

    def drop(self, leftover: Leftover) -> None:
        """Forget a leftover that has ended or is given up."""
        del self._leftovers[leftover.pid]
        self._unwatch(leftover.pidfd)
        leftover.release()
        self.must_look = self.must_look or not self._leftovers
        if any(worker.pid == leftover.session and not worker.process.is_held for worker in self._workers):
            self._forget_if_empty(leftover.session)

    def send(self, signal_number: int) -> None:
        """Signal all known leftovers."""
        for leftover in self._leftovers.values():
            leftover.send(signal_number)
        self.must_look = True

    def look(self, signal_number: int, is_killing: bool) -> None:
        """Find leftovers of ended workers (of all, once it is time to kill) and signal those that are new.

        What workers have started that are spared is never touched.
        """
        self.must_look = False
        spared = {worker.local_rank for worker in self._workers if worker.exit_code is None and worker.is_spared}
        running = {worker.local_rank for worker in self._workers if worker.exit_code is None}
        sessions = {
            worker.pid: worker.local_rank
            for worker in self._workers
            if worker.exit_code is None or worker.process.is_held or self._has_session(worker.pid)
        }
        known = {worker.pid for worker in self._workers} | self._leftovers.keys() | self._foreign
        try:
            for leftover in find_leftovers(self._context_id, sessions, known):
                if leftover.local_rank in spared or (leftover.local_rank in running and not is_killing):
                    release(leftover.pidfd)  # a running worker may need it to come to its end
                    continue
                if self.is_naming:
                    _name(leftover)
                if leftover.send(signal_number):
                    self._add(leftover)
                else:
                    self._foreign.add(leftover.pid)
                    warn(f"process {leftover.pid}, left by local rank {leftover.local_rank}, runs as another user")
                    release(leftover.pidfd)
            self._has_no_descriptors = False
        except OSError:
            self._has_no_descriptors = self.must_look = True

    def give_up(self) -> list[str]:
        """Drop all that did not end, and return a sentence about each."""
        sentences = []
        for leftover in list(self._leftovers.values()):
            sentences.append(f"{why_stuck(leftover.pid)}; local rank {leftover.local_rank} left it")
            self.drop(leftover)
        return sentences

    def _add(self, leftover: Leftover) -> None:
        self._leftovers[leftover.pid] = leftover
        self._watch(leftover.pidfd, leftover)

    def _has_session(self, session: int) -> bool:
        return any(leftover.session == session for leftover in self._leftovers.values())

    def _forget_if_empty(self, session: int) -> None:
        if not self._has_session(session):
            self._guardian.forget(session)


def why_stuck(pid: int) -> str:
    """Return where a process is that did not end upon SIGKILL."""
    where = f"process {pid} (state {state_of(pid) or 'gone'}, waits in {kernel_wait_of(pid)})"
    return f"{where} did not end within {KILL_TIMEOUT_SECONDS:g} s of SIGKILL and is left to the kernel"


def _name(leftover: Leftover) -> None:
    """Say which process a worker that succeeded has left behind."""
    command = command_of(leftover.pid)
    if not any(helper in command for helper in _HELPERS):
        text = printable(command, _LONGEST_COMMAND) or "of unknown name"
        note(f"process {leftover.pid} ({text}), which local rank {leftover.local_rank} left behind, is ended")
