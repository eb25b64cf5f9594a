"""A start method's context whose workers do nothing: tests derive from it what their subject needs."""

from __future__ import annotations

from quorate.records import WorkerExited


class IdleContext:
    """The context of workers of which nothing is reported, and which cannot be suspended."""

    def __init__(self) -> None:
        self.is_closed = False

    def fileno(self) -> int:
        return 0

    def wake_at(self) -> float | None:
        return None

    def advance(self, now: float) -> list[WorkerExited]:
        return []

    def is_gone(self) -> bool:
        return self.is_closed

    def pids(self) -> dict[int, int]:
        return {}

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None: ...

    def close(self) -> None:
        self.is_closed = True
