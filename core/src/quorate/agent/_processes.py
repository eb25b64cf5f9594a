"""The worker processes of one node: one context for each start, since live workers stay in theirs.

What does not live here: the processes themselves, which belong to the starter, and when they are started, released and
stopped (the machine).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import final

from ..clock import monotonic
from ..errors import PluginError
from ..records import WorkerExited, WorkerLaunch
from . import _protocol as protocol
from ._guarded_context import GuardedContext

#: Beyond the grace: what the starter needs to kill, sweep and drain, even from an uninterruptible wait.
_LAST_RESORT_SECONDS = 10.0


@final
class Processes:
    """The contexts of one node's workers.  Used on the agent's thread.

    Arguments:
        watch, unwatch: called with the descriptor of a context that begins or has ended.
        warn: called with a sentence about a context that could not be closed.
    """

    def __init__(
        self, watch: Callable[[int], None], unwatch: Callable[[int], None], warn: Callable[[str], None]
    ) -> None:
        self._watch, self._unwatch, self._warn = watch, unwatch, warn
        self._contexts: list[GuardedContext] = []
        self._deadline: float | None = None
        self._is_releasing = self._is_frozen = False
        self._problems: list[str] = []
        #: The process ids of each context's workers whose end was not reported yet, and those that others replace.
        self._unreported: dict[GuardedContext, set[int]] = {}
        self._replaced: set[int] = set()

    # --- starting -------------------------------------------------------------------------------------------------

    def begin(self) -> Collection[int]:
        """Workers are about to be started: return the local ranks of those that were released and still wait.

        All others are gone for good.  Their ends are not reported any more, since they would be taken for the ends of
        those that are started in their places.
        """
        self._deadline, self._is_releasing = None, False
        waiting: set[int] = set()
        for context in list(self._contexts):
            here = _kept_in(context)
            if not here:
                self._close(context)
                continue
            waiting.update(here)
            pids = {pid for local_rank, pid in context.pids().items() if local_rank in here}
            self._replaced |= self._unreported[context] - pids
        return waiting

    def add(self, context: GuardedContext) -> None:
        """Take the context of workers that were started.

        Raises:
            PluginError: all workers are frozen, and these cannot be.
        """
        self._contexts.append(context)
        self._unreported[context] = set()
        self._unreported[context].update(context.pids().values())
        self._replaced -= self._unreported[context]
        self._watch(context.fileno())
        if self._is_frozen and (problem := self.freeze()):
            raise PluginError(problem)

    def assign(self, launches: Sequence[WorkerLaunch]) -> None:
        """Tell released workers their next assignment."""
        by_rank = {launch.local_rank: launch for launch in launches}
        for context in self._contexts:
            for local_rank in _kept_in(context):
                if local_rank in by_rank:
                    context.assign(by_rank[local_rank])

    def pids(self) -> Mapping[int, int]:
        """Return local rank -> process id of the workers that are there."""
        return {local_rank: pid for context in self._contexts for local_rank, pid in context.pids().items()}

    # --- watching -------------------------------------------------------------------------------------------------

    def wake_at(self) -> float | None:
        """Return when :meth:`advance` wants to be called next, whether or not a descriptor is readable."""
        times = [context.wake_at() for context in self._contexts]
        return min((time for time in (*times, self._deadline) if time is not None), default=None)

    def advance(self) -> list[WorkerExited]:
        """Carry everything forward; return the workers that ended since the last call."""
        ended: list[WorkerExited] = []
        for context in self._contexts:
            exits = context.advance(monotonic())
            self._unreported[context].difference_update(exit.pid for exit in exits)
            ended += exits
        own = [exit for exit in ended if exit.pid not in self._replaced]
        self._replaced.difference_update(exit.pid for exit in ended)
        return own

    def delivered(self) -> list[int]:
        """Return the local ranks of workers whose functions have returned and that still run."""
        return [local_rank for context in self._contexts for local_rank in context.delivered()]

    def forward(self, signal_number: int) -> list[int]:
        """Pass a signal on; return the local ranks of the workers that handle it."""
        return [local_rank for context in self._contexts for local_rank in context.forward(signal_number)]

    def suspend(self) -> None:
        """Stop all workers for a while."""
        for context in self._contexts:
            context.suspend()

    def resume(self) -> None:
        """Have them go on, unless they are frozen."""
        if not self._is_frozen:
            for context in self._contexts:
                context.resume()

    def freeze(self) -> str:
        """Have all workers stand still until :meth:`thaw`; return why one of them cannot, ``""`` if all do."""
        self._is_frozen = True
        try:
            self.suspend()
        except PluginError as error:
            return f"the workers cannot be frozen: {error}"
        if all(context.can_suspend for context in self._contexts):
            return ""
        return "the workers cannot be frozen: their start method does not know how to suspend them"

    def thaw(self) -> None:
        """Have them go on."""
        self._is_frozen = False
        self.resume()

    @property
    def can_dump_stacks(self) -> bool:
        """Whether :meth:`dump_stacks` has anything to call."""
        return any(context.can_dump_stacks for context in self._contexts)

    def dump_stacks(self, hung_local_rank: int, timeout: float) -> Sequence[str]:
        """See :class:`quorate.starter.StackDumper`; called on a thread of its own."""
        end, lines = monotonic() + timeout, list[str]()
        for context in list(self._contexts):
            if context.can_dump_stacks:
                lines += context.dump_stacks(hung_local_rank, max(0.0, end - monotonic()))
        return lines

    # --- stopping -------------------------------------------------------------------------------------------------

    def stop(self, command: protocol.StopWorkers) -> None:
        """Stop all workers, released ones included; :meth:`take_gone` says when that is done."""
        self._end_frost(command.grace_seconds)
        self._is_releasing = False
        self._set_deadline(command.grace_seconds, is_shortened=command.grace_seconds == 0.0)
        for context in self._contexts:
            context.stop(command.signal_number, command.grace_seconds, monotonic())

    def release(self, command: protocol.ReleaseWorkers) -> None:
        """Release live workers and stop the others; :meth:`take_gone` says when that is done."""
        self._end_frost(command.grace_seconds)
        self._is_releasing = True
        self._set_deadline(command.release_seconds + command.grace_seconds)
        for context in self._contexts:
            number, grace, now = command.signal_number, command.grace_seconds, monotonic()
            given_up = () if command.given_up is None else (command.given_up,)
            context.release(number, grace, command.release_seconds, given_up, now)

    def _end_frost(self, grace_seconds: float) -> None:
        """Let frozen processes go on if they get a grace, which they could not use otherwise.

        Only what workers that have succeeded have left behind gets one: frozen workers are killed.
        """
        if self._is_frozen and grace_seconds > 0.0:
            self.thaw()
        self._is_frozen = False

    def _set_deadline(self, seconds: float, is_shortened: bool = False) -> None:
        deadline = monotonic() + seconds + _LAST_RESORT_SECONDS
        if self._deadline is None or is_shortened:
            self._deadline = deadline
        else:
            self._deadline = max(self._deadline, deadline)

    def take_gone(self) -> protocol.WorkersGone | None:
        """Return, once, that all workers are gone or released; contexts without workers are closed then."""
        if self._deadline is None:
            return None
        is_over = monotonic() >= self._deadline
        if not is_over and not all(map(self._is_settled, self._contexts)):
            return None
        kept: set[int] = set()
        for context in list(self._contexts):
            here = _kept_in(context) if self._is_releasing and self._is_settled(context) else ()
            if here:
                kept.update(here)
                self._problems += context.left_behind()
            else:
                self._close(context)  # kills what a stalled console or a wait in the kernel has left
        self._deadline, self._is_releasing = None, False
        return protocol.WorkersGone(frozenset(kept))

    def _is_settled(self, context: GuardedContext) -> bool:
        return context.is_gone() or (self._is_releasing and bool(_kept_in(context)))

    def take_problem(self) -> str:
        """Return, once, why this node should not join another round; ``""``: it may join."""
        problems, self._problems = self._problems, []
        return "; ".join(problems)

    def close(self) -> None:
        """Kill what is left, and release everything."""
        for context in list(self._contexts):
            self._close(context)

    def _close(self, context: GuardedContext) -> None:
        self._contexts.remove(context)
        self._replaced -= self._unreported.pop(context)
        with suppress(PluginError):  # its descriptor is unknown
            self._unwatch(context.fileno())
        try:
            context.close()
            self._problems += context.left_behind()
        except PluginError as error:
            self._warn(f"{error}; workers may be left over")


def _kept_in(context: GuardedContext) -> Collection[int]:
    """Return the local ranks of a context's released workers; none while other workers or leftovers of it run."""
    return context.released() or ()
