"""The timers of all processes, and when the next one ends.  No clocks, no I/O; times are monotonic seconds.

What does not live here: whose processes they are and what is done about an expired one (:mod:`._server`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import final

__all__ = ["Key", "Timer", "Timers"]

#: Who made it (pid and time of start) and what it is called there.
Key = tuple[int, str, "int | str | None"]


@final
class Timer:
    """A running timer; ``rank`` and ``round_number`` are -1 where only the process tells whose it is."""

    __slots__ = ("after", "deadline", "is_fatal", "is_foreign", "rank", "round_number", "scope")

    def __init__(
        self,
        deadline: float,
        after: float,
        scope: str,
        is_fatal: bool = True,
        is_foreign: bool = False,
        rank: int = -1,
        round_number: int = -1,
    ) -> None:
        self.deadline, self.after, self.scope, self.is_fatal = deadline, after, scope, is_fatal
        #: Its process is in another namespace, where pids mean something else.
        self.is_foreign = is_foreign
        self.rank, self.round_number = rank, round_number


@final
class Timers:
    """A table of timers and a heap of their deadlines.

    A released timer's place in the heap is found empty later, and one that was put off is put back, so that setting,
    putting off and releasing are cheap; the heap is made anew before it is mostly such places.
    """

    def __init__(self) -> None:
        self._timers: dict[Key, Timer] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._timers)

    def set(self, key: Key, timer: Timer) -> None:
        """Begin a timer, or the same one anew."""
        old = self._timers.get(key)
        self._timers[key] = timer
        if old is None or timer.deadline < old.deadline:
            self._push(timer.deadline, key)

    def release(self, key: Key) -> None:
        """End a timer; an unknown one is nothing."""
        self._timers.pop(key, None)
        if len(self._heap) > 2 * len(self._timers) + 64:
            self._rebuild()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._timers)

    def put_off(self, seconds: float) -> None:
        """Give every timer ``seconds`` more."""
        for timer in self._timers.values():
            timer.deadline += seconds
        self._rebuild()

    def next_deadline(self) -> float | None:
        """Return when the next timer ends, at the earliest."""
        return self._heap[0][0] if self._heap else None

    def pop_expired(self, now: float) -> list[tuple[Key, Timer]]:
        """Take out the timers that have ended by ``now``, the first to end first."""
        expired = []
        while self._heap and self._heap[0][0] <= now:
            _, _, key = heapq.heappop(self._heap)
            timer = self._timers.get(key)
            if timer is None:
                continue
            if timer.deadline > now:
                self._push(timer.deadline, key)
                continue
            del self._timers[key]
            expired.append((key, timer))
        return expired

    def _push(self, deadline: float, key: Key) -> None:
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, key))

    def _rebuild(self) -> None:
        self._heap = [(timer.deadline, number, key) for number, (key, timer) in enumerate(self._timers.items())]
        self._count = len(self._heap)
        heapq.heapify(self._heap)
