"""What this agent went through, noted from its events: rounds and their times, restarts by cause, durations.

Written by the agent's thread, read by the server's; nothing here does I/O.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import final

from attrs import evolve, frozen

from quorate.clock import monotonic
from quorate.events import EventName
from quorate.records import AgentPhase, Event

__all__ = ["Journal", "RoundEntry"]

_LONGEST_HISTORY = 100
#: Durations that no client has read yet; older ones are dropped.
_MOST_DURATIONS = 10_000


@final
@frozen
class RoundEntry:
    """One round that this node took part in.  Times are seconds of the monotonic clock, ``None`` until they come.

    ``asked_at`` is when the node began to join, ``ended_at`` when the round's recorded end became known here.
    ``kept`` and ``new`` are the pids of this node's workers that have lived on into it, and of those that were started
    for it; ``pause_seconds`` is the time from the end of the round before until both were there.
    """

    number: int
    restart_count: int
    group_rank: int
    group_world_size: int
    world_size: int
    asked_at: float
    joined_at: float
    started_at: float | None = None
    ended_at: float | None = None
    cause: str = ""
    verdict: str = ""
    kept: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    pause_seconds: float = 0.0


@final
class Journal:
    """The notes of one agent's events."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._rounds: deque[RoundEntry] = deque(maxlen=_LONGEST_HISTORY)
        self._ends: Counter[tuple[str, str]] = Counter()
        self._asked_at: float | None = None
        self._stood_by = False
        self._trouble_at: float | None = None
        self.begun_at = now()
        self.rendezvous_seconds: deque[float] = deque(maxlen=_MOST_DURATIONS)
        self.recovery_seconds: deque[float] = deque(maxlen=_MOST_DURATIONS)

    def rounds(self) -> tuple[RoundEntry, ...]:
        """Return the rounds, oldest first, at most a hundred."""
        with self._lock:
            return tuple(self._rounds)

    def ends(self) -> dict[tuple[str, str], int]:
        """Return how many rounds ended by ``(verdict, cause)``."""
        with self._lock:
            return dict(self._ends)

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        note = _NOTES.get(event.name)
        if note is not None:
            with self._lock:
                note(self, event, self._now())

    def _phase(self, event: Event, now: float) -> None:
        if event.details["phase"] == AgentPhase.JOINING:
            self._asked_at, self._stood_by = now, False

    def _standby(self, event: Event, now: float) -> None:
        self._stood_by = True

    def _joined(self, event: Event, now: float) -> None:
        details = event.details
        asked_at = now if self._asked_at is None else self._asked_at
        if not self._stood_by:  # the time of a standby is not the rendezvous'
            self.rendezvous_seconds.append(now - asked_at)
        self._rounds.append(
            RoundEntry(
                details["round"],
                details["restart_count"],
                details["group_rank"],
                details["group_world_size"],
                details["world_size"],
                asked_at,
                now,
            )
        )

    def _started(self, event: Event, now: float) -> None:
        if self._rounds:
            details = event.details
            kept = tuple(details.get("kept", ()))
            self._rounds[-1] = evolve(
                self._rounds[-1],
                started_at=now,
                kept=kept,
                new=tuple(pid for pid in details.get("pids", ()) if pid not in kept),
                pause_seconds=details.get("pause_seconds", 0.0),
            )
        if self._trouble_at is not None:
            self.recovery_seconds.append(now - self._trouble_at)
            self._trouble_at = None

    def _failed(self, event: Event, now: float) -> None:
        if self._trouble_at is None:
            self._trouble_at = now

    def _ended(self, event: Event, now: float) -> None:
        details = event.details
        self._ends[details["verdict"], details["cause"]] += 1
        if self._trouble_at is None:
            self._trouble_at = now
        if self._rounds and self._rounds[-1].number == details["round"]:
            self._rounds[-1] = evolve(
                self._rounds[-1], ended_at=now, cause=details["cause"], verdict=details["verdict"]
            )


_NOTES: Mapping[str, Callable[[Journal, Event, float], None]] = {
    EventName.AGENT_PHASE: Journal._phase,
    EventName.ROUND_STANDBY: Journal._standby,
    EventName.ROUND_JOINED: Journal._joined,
    EventName.WORKERS_STARTED: Journal._started,
    EventName.WORKER_FAILED: Journal._failed,
    EventName.ROUND_ENDED: Journal._ended,
}
