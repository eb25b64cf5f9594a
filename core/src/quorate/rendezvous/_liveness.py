"""Who is alive, judged by counters that stand still on *my* monotonic clock.  Pure.

Clocks of different hosts are never compared, and time during which I did not look (I was paused, or the store was
away) is not held against anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import final

from attrs import field, frozen

__all__ = ["Beat", "BeatState", "Liveness"]


@final
class BeatState(str, Enum):
    """What a node says of itself with each beat."""

    RUN = "run"
    DONE = "done"  # its workers have all succeeded
    BYE = "bye"  # its workers have all succeeded, and it is gone
    LEFT = "left"  # it is gone, on purpose, before its workers were done

    @property
    def is_done(self) -> bool:
        return self in (BeatState.DONE, BeatState.BYE)

    @property
    def is_gone(self) -> bool:
        return self in (BeatState.BYE, BeatState.LEFT)


_STATES: Mapping[str, BeatState] = {state.value: state for state in BeatState}


@final
@frozen
class Beat:
    """One node's heartbeat value: a counter, its state, and its host name for messages."""

    count: int
    state: BeatState
    host: str = ""

    def encode(self) -> bytes:
        return f"{self.count} {self.state.value} {self.host}".encode()

    @classmethod
    def decode(cls, value: bytes) -> Beat:
        """Read a beat.  Any change of the bytes counts as life, so garbage is merely a running node."""
        count, _, rest = value.decode("utf-8", "replace").partition(" ")
        word, _, host = rest.partition(" ")
        state = _STATES.get(word, BeatState.RUN)
        return cls(int(count) if count.isdecimal() else 0, state, host[:255])


@final
@frozen
class _Seen:
    value: bytes | None
    changed_at: float
    has_left: bool = False  # read once per change: a sealer asks this of every node, again and again


@final
@frozen
class Liveness:
    """What was seen of some keys so far, and when each last changed (seconds, my clock)."""

    seen: Mapping[str, _Seen] = field(factory=dict)
    looked_at: float | None = None

    def look(self, values: Mapping[str, bytes | None], now: float, interval: float) -> Liveness:
        """Return what is known after reading ``values`` at ``now``.

        A gap since the last look of more than two ``interval`` seconds is credited to everyone.
        """
        credit = 0.0
        if self.looked_at is not None and now - self.looked_at > 2 * interval:
            credit = now - self.looked_at - interval
        seen = dict(self.seen)
        for key, value in values.items():
            old = seen.get(key)
            if old is None or old.value != value:
                seen[key] = _Seen(value, now, value is not None and Beat.decode(value).state.is_gone)
            elif credit:
                seen[key] = _Seen(value, min(now, old.changed_at + credit), old.has_left)
        return Liveness(seen, now)

    def still_for(self, key: str) -> float:
        """Return for how many seconds ``key`` was seen to stand still: up to the last look, 0 if there was none."""
        old = self.seen.get(key)
        return 0.0 if old is None or self.looked_at is None else max(0.0, self.looked_at - old.changed_at)

    def next_expiry(self, keys: Iterable[str], now: float, interval: float, patience: float) -> float | None:
        """Return when the first of ``keys`` that has missed a beat will have stood still for ``patience`` seconds."""
        times = [
            old.changed_at + patience for key in keys if (old := self.seen.get(key)) and now - old.changed_at > interval
        ]
        coming = [time for time in times if time > now]
        return min(coming) if coming else None

    def beat(self, key: str) -> Beat | None:
        """Return the last beat read from ``key``."""
        old = self.seen.get(key)
        return None if old is None or old.value is None else Beat.decode(old.value)

    def was_seen(self, key: str) -> bool:
        """Return whether ``key`` existed when it was last read."""
        old = self.seen.get(key)
        return old is not None and old.value is not None

    def has_left(self, key: str) -> bool:
        """Return whether the node behind ``key`` said that it is gone."""
        old = self.seen.get(key)
        return old is not None and old.has_left
