"""Asks the agent whether its loop runs, and its store how fast it answers: seldom, however often clients ask."""

from __future__ import annotations

import threading
from typing import final

from attrs import frozen

from quorate.clock import monotonic
from quorate.errors import QuorateError
from quorate.services import AgentView

__all__ = ["DEADLINE_SECONDS", "FRESH_SECONDS", "Pulse", "StoreProbe", "StoreState"]

#: An agent that has not taken a turn within this time is not live.
DEADLINE_SECONDS = 5.0
#: For how long an answer is given to other clients; a missing answer is, for longer, because asking takes long.
FRESH_SECONDS, _FRESH_SILENCE_SECONDS = 0.25, 1.0
_PROBE_INTERVAL_SECONDS, _PROBE_TIMEOUT_SECONDS = 5.0, 1.0


@final
class Pulse:
    """The agent's turn time, asked for by one client at a time and shared by all that ask meanwhile."""

    def __init__(self, agent: AgentView) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self._seconds: float | None = None
        self._fresh_until: float | None = None

    def ask(self) -> float | None:
        """Return the seconds that the agent's last turn took; ``None`` if it took none within its deadline."""
        with self._lock:
            if self._fresh_until is None or monotonic() >= self._fresh_until:
                self._seconds = self._agent.turn(DEADLINE_SECONDS)
                fresh = _FRESH_SILENCE_SECONDS if self._seconds is None else FRESH_SECONDS
                self._fresh_until = monotonic() + fresh
            return self._seconds


@final
@frozen
class StoreState:
    """``is_known`` is false while there is no store to ask; ``latency_seconds`` is ``None`` if it did not answer."""

    is_known: bool
    latency_seconds: float | None = None


@final
class StoreProbe:
    """The store's latency, measured at most every few seconds: each measurement is a read that the store must serve."""

    def __init__(self, agent: AgentView) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self._state = StoreState(False)
        self._next_at: float | None = None

    def measure(self) -> StoreState:
        """Return the newest measurement, made now if the last one is too old."""
        with self._lock:
            if self._next_at is None or monotonic() >= self._next_at:
                self._state = self._measure()
                self._next_at = monotonic() + _PROBE_INTERVAL_SECONDS
            return self._state

    def _measure(self) -> StoreState:
        try:
            latency = self._agent.store_latency(_PROBE_TIMEOUT_SECONDS)
        except QuorateError:
            return StoreState(True)
        return StoreState(latency is not None, latency)
