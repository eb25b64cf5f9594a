"""Has services get ready while the node waits for other nodes.

When the last node has joined, each millisecond counts, on many machines at the same time.  A job that is over at once
needs none of this.  What does not live here: what services load (:class:`quorate.services.PreparingService`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

#: A join that takes longer than this waits for other nodes.
_QUIET_SECONDS = 0.05


@final
class IdleWork:
    """A task that is done once, when nothing has happened for a while.

    Arguments:
        task: what to do; some ten milliseconds at most.
        quiet_seconds: how long nothing must have happened.
    """

    def __init__(self, task: Callable[[], None], quiet_seconds: float = _QUIET_SECONDS) -> None:
        self._task, self._quiet_seconds = task, quiet_seconds
        self._due: float | None = None
        self._is_done = False

    def begin(self, now: float) -> None:
        """Begin to wait at ``now`` (monotonic seconds)."""
        self._due = None if self._is_done else now + self._quiet_seconds

    def cancel(self) -> None:
        """Something has happened; the task is left for the next wait."""
        self._due = None

    def wake_at(self) -> float | None:
        """Return when :meth:`advance` has something to do."""
        return self._due

    def advance(self, now: float) -> None:
        """Do the task if it is time."""
        if self._due is not None and now >= self._due:
            self._due, self._is_done = None, True
            self._task()
