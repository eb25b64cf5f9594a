"""Which nodes of a simulated world have sent heartbeats all the time, as the store has seen it.

What does not live here: the laws (``_simulation_laws``).
"""

from __future__ import annotations

from typing import final


@final
class HeartbeatTimes:
    """Since when the heartbeats of each node, by its name, have arrived without a long gap."""

    def __init__(self) -> None:
        self._steady_since: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def note(self, node: str, now: float, longest_gap: float) -> None:
        """Note that a heartbeat of ``node`` has arrived; up to ``longest_gap`` seconds between two are usual."""
        if now - self._last.get(node, -1e9) > longest_gap:
            self._steady_since[node] = now
        self._last[node] = now

    def steady_since(self, node: str, now: float, longest_gap: float) -> float:
        """Return when the heartbeats began that have arrived without a long gap; infinity if the last one is old."""
        if now - self._last.get(node, -1e9) > longest_gap:
            return float("inf")
        return self._steady_since[node]
