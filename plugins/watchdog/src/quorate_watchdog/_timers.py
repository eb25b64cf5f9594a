"""The timers of all processes, and when the next one ends.  No clocks, no I/O; times are monotonic seconds.

What does not live here: which worker a process belongs to, and what an expired timer means (:mod:`._timekeeper`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import final

from attrs import define, frozen


@final
@frozen
class TimerKey:
    """The process that made a timer, and the timer's name there.

    ``started_at`` tells a process from a later one of the same number (:func:`quorate.proc.start_time_of`); ``None``
    where the process is in another namespace.  A timer without a ``name`` is the process's heartbeat.
    """

    pid: int
    started_at: int | None
    name: int | str | None


@final
@define
class Timer:
    """A running timer.

    Arguments:
        deadline: when it ends.
        after: the seconds that were asked for.
        scope: what is timed, for the report.
        is_fatal: whether its end is a hang; else it is only a message.
        is_foreign: whether its process is in another namespace, where process ids mean something else.
        rank: the worker's global rank, -1 where only the process tells which worker it is.
        round_number: the worker's round, -1 likewise.
    """

    deadline: float
    after: float
    scope: str
    is_fatal: bool = True
    is_foreign: bool = False
    rank: int = -1
    round_number: int = -1


@final
class Timers:
    """A table of timers and a heap of their deadlines.

    An entry of the heap whose timer was released or prolonged is found outdated when it is popped, so that setting,
    prolonging and releasing are cheap.  The heap is rebuilt before most of its entries are outdated.
    """

    def __init__(self) -> None:
        self._timers: dict[TimerKey, Timer] = {}
        self._heap: list[tuple[float, int, TimerKey]] = []
        self._count = 0  # breaks ties in the heap

    def __len__(self) -> int:
        return len(self._timers)

    def __iter__(self) -> Iterator[TimerKey]:
        return iter(self._timers)

    def set(self, key: TimerKey, timer: Timer) -> None:
        """Start a timer, or restart the same one."""
        old = self._timers.get(key)
        self._timers[key] = timer
        if old is None or timer.deadline < old.deadline:
            self._push(timer.deadline, key)

    def release(self, key: TimerKey) -> None:
        """End a timer; an unknown one is ignored."""
        self._timers.pop(key, None)
        if len(self._heap) > 2 * len(self._timers) + 64:
            self._rebuild()

    def prolong_all(self, seconds: float) -> None:
        """Give every timer ``seconds`` more."""
        for timer in self._timers.values():
            timer.deadline += seconds
        self._rebuild()

    def next_deadline(self) -> float | None:
        """Return when the next timer ends, at the earliest."""
        return self._heap[0][0] if self._heap else None

    def pop_expired(self, now: float) -> list[tuple[TimerKey, Timer]]:
        """Remove and return the timers that have ended by ``now``, the first to end first."""
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

    def _push(self, deadline: float, key: TimerKey) -> None:
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, key))

    def _rebuild(self) -> None:
        self._heap = [(timer.deadline, number, key) for number, (key, timer) in enumerate(self._timers.items())]
        self._count = len(self._heap)
        heapq.heapify(self._heap)
