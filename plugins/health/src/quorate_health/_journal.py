"""What this agent went through, noted from its events: rounds and their times, restarts by cause, durations.

Written by the agent's thread, read by the server's; nothing here does I/O.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import final

from attrs import evolve, frozen

from quorate.clock import monotonic
from quorate.events import (
    AgentPhaseDetails,
    RoundEndedDetails,
    RoundJoinedDetails,
    RoundStandbyDetails,
    WorkerFailedDetails,
    WorkersStartedDetails,
)
from quorate.records import AgentPhase, Event

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

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rounds: deque[RoundEntry] = deque(maxlen=_LONGEST_HISTORY)
        self._ends: Counter[tuple[str, str]] = Counter()
        self._asked_at: float | None = None
        self._stood_by = False
        self._trouble_at: float | None = None
        self.begun_at = monotonic()
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
        with self._lock:
            match event.details:
                case AgentPhaseDetails(phase=AgentPhase.JOINING):
                    self._asked_at, self._stood_by = monotonic(), False
                case RoundStandbyDetails():
                    self._stood_by = True
                case RoundJoinedDetails() as joined:
                    self._joined(joined, monotonic())
                case WorkersStartedDetails() as started:
                    self._started(started, monotonic())
                case WorkerFailedDetails():
                    self._note_trouble(monotonic())
                case RoundEndedDetails() as ended:
                    self._ended(ended, monotonic())

    def _joined(self, joined: RoundJoinedDetails, now: float) -> None:
        asked_at = now if self._asked_at is None else self._asked_at
        if not self._stood_by:  # the time of a standby is not the rendezvous'
            self.rendezvous_seconds.append(now - asked_at)
        self._rounds.append(
            RoundEntry(
                joined.round,
                joined.restart_count,
                joined.group_rank,
                joined.group_world_size,
                joined.world_size,
                asked_at,
                now,
            )
        )

    def _started(self, started: WorkersStartedDetails, now: float) -> None:
        if self._rounds:
            self._rounds[-1] = evolve(
                self._rounds[-1],
                started_at=now,
                kept=started.kept,
                new=tuple(pid for pid in started.pids if pid not in started.kept),
                pause_seconds=started.pause_seconds,
            )
        if self._trouble_at is not None:
            self.recovery_seconds.append(now - self._trouble_at)
            self._trouble_at = None

    def _note_trouble(self, now: float) -> None:
        if self._trouble_at is None:
            self._trouble_at = now

    def _ended(self, ended: RoundEndedDetails, now: float) -> None:
        self._ends[ended.verdict, ended.cause] += 1
        self._note_trouble(now)
        if self._rounds and self._rounds[-1].number == ended.round:
            self._rounds[-1] = evolve(self._rounds[-1], ended_at=now, cause=ended.cause, verdict=ended.verdict)
