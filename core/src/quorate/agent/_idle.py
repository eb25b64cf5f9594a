"""Loads what will be needed later while the agent has nothing else to do.

When the last node has joined, or a worker has failed, each millisecond counts, on many machines at the same time.  A
job that is over at once needs none of this.  What does not live here: what "nothing else to do" means (``_runner``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import final

__all__ = ["JOIN_QUIET_SECONDS", "RUN_QUIET_SECONDS", "IdleWork"]

#: A join that takes longer than the first waits for other nodes; workers that run for longer than the second will
#: hardly all fail at once.
JOIN_QUIET_SECONDS, RUN_QUIET_SECONDS = 0.05, 0.5

#: What a first failure needs and a start does not.
_MODULES: tuple[str, ...] = ()


@final
class IdleWork:
    """Has services get ready, then loads modules: one thing at a time, some ten milliseconds each at most.

    Arguments:
        get_ready: lets the services of the run load what they need.
        modules: names of the modules.
    """

    def __init__(self, get_ready: Callable[[], None], modules: tuple[str, ...] = _MODULES) -> None:
        self._tasks: deque[Callable[[], object]] = deque([get_ready, *(partial(import_module, it) for it in modules)])
        self._due: float | None = None

    def begin(self, now: float, quiet_seconds: float) -> None:
        """Begin once nothing has happened for ``quiet_seconds`` from ``now`` (monotonic seconds) on."""
        self._due = now + quiet_seconds if self._tasks else None

    def cancel(self) -> None:
        """Stop: something has happened.  The rest is done at the next occasion."""
        self._due = None

    def wake_at(self) -> float | None:
        """Return when :meth:`advance` has something to do."""
        return self._due

    def advance(self, now: float) -> None:
        """Do one thing if it is time; events that came meanwhile are handled before the next."""
        if self._due is not None and now >= self._due:
            self._tasks.popleft()()
            self._due = now if self._tasks else None
