"""Which nodes are alive, judged by heartbeats that stay unchanged on the clock of the node that reads them.  Pure.

Clocks of different hosts are never compared.  Time in which the reader itself did not read (it was paused, or the store
was away) counts against no node.

What does not live here: whose heartbeats a node reads (``_transition``, ``_members``), how long the lease is
(:mod:`quorate.timeouts`), and what follows from a loss (``_running``, ``_joining``, ``_sealing``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import final

from attrs import evolve, field, frozen

from ..text import printable


@final
class HeartbeatState(str, Enum):
    """What a node reports about itself in each heartbeat."""

    RUNNING = "run"
    DONE = "done"  # all its workers have succeeded
    DONE_AND_LEFT = "done-left"
    LEFT = "left"  # it left on purpose before its workers were done

    @property
    def is_done(self) -> bool:
        return self in (HeartbeatState.DONE, HeartbeatState.DONE_AND_LEFT)

    @property
    def has_left(self) -> bool:
        return self in (HeartbeatState.DONE_AND_LEFT, HeartbeatState.LEFT)


_MOST_DIGITS = 18
#: How much faster one clock may be than another, several times over.
_DRIFT = 0.05
_LONGEST_HOST = 255
_LARGEST_BYTES = 4096
_STATES: Mapping[str, HeartbeatState] = {state.value: state for state in HeartbeatState}


@final
@frozen
class Heartbeat:
    """The value of one heartbeat: a counter, the node's state, and its host name for messages.

    ``sent_ms`` is when it was sent, in milliseconds on the *sender's* monotonic clock.  Only differences between
    heartbeats of one sender mean something.
    """

    count: int
    state: HeartbeatState
    host: str = ""
    sent_ms: int | None = None

    def encode(self) -> bytes:
        stamp = "" if self.sent_ms is None else f"@{self.sent_ms}"
        return f"{self.count}{stamp} {self.state.value} {self.host}".encode()

    @classmethod
    def decode(cls, value: bytes) -> Heartbeat:
        """Read a heartbeat.  Bytes that are not one are read as a running node's that has sent none yet."""
        numbers, _, rest = value[:_LARGEST_BYTES].decode("utf-8", "replace").partition(" ")
        word, _, host = rest.partition(" ")
        state = _STATES.get(word, HeartbeatState.RUNNING)
        count, _, stamp = numbers.partition("@")
        return cls(_number(count) or 0, state, printable(host, _LONGEST_HOST), _number(stamp))


def _number(text: str) -> int | None:
    return int(text) if 0 < len(text) <= _MOST_DIGITS and text.isascii() and text.isdecimal() else None


@final
@frozen
class _Reading:
    value: bytes | None
    changed_at: float  # when it was sent, as far as that can be known
    # Decoded once per change, because the sealer asks for it often.
    count: int = 0
    has_left: bool = False
    # What the reader's clock shows more than the sender's, at most; a delay of the reading is a part of it.
    offset: float | None = None
    read_at: float = 0.0
    has_moved: bool = False  # it is newer than the first one that was read

    def is_newer_than(self, old: _Reading) -> bool:
        return self.value is not None and (old.value is None or self.count > old.count)


def _new_reading(value: bytes | None, now: float) -> _Reading:
    if value is None:
        return _Reading(None, now)
    heartbeat = Heartbeat.decode(value)
    offset = None if heartbeat.sent_ms is None else now - heartbeat.sent_ms / 1000
    return _Reading(value, now, heartbeat.count, heartbeat.state.has_left, offset, now)


def _dated(reading: _Reading, old: _Reading | None) -> _Reading:
    """Date ``reading`` by when it was sent: the smallest offset seen lately has the smallest delay in it.

    Clocks may drift apart by up to ``_DRIFT``, so that an older offset counts for less and less.
    """
    if old is None:
        return reading
    if old.offset is None or reading.offset is None:
        return evolve(reading, has_moved=True)
    best = min(reading.offset, old.offset + _DRIFT * (reading.read_at - old.read_at))
    sent_at = reading.read_at - (reading.offset - best)
    changed_at = min(reading.read_at, max(sent_at, old.changed_at))
    return evolve(reading, offset=best, changed_at=changed_at, has_moved=True)


@final
@frozen
class Liveness:
    """What was read from some keys so far, and when each last changed (seconds on the reader's clock)."""

    readings: Mapping[str, _Reading] = field(factory=dict)
    read_at: float | None = None

    def after_reading(self, values: Mapping[str, bytes | None], now: float, interval: float) -> Liveness:
        """Return what is known after ``values`` were read at ``now``.

        A key has changed if it exists for the first time or if its counter is higher than ever: an older heartbeat that
        comes back, or one that has vanished, is not a sign of life.
        If the last reading is more than two ``interval`` seconds ago, the gap is credited to every node.
        """
        credit = 0.0
        if self.read_at is not None and now - self.read_at > 2 * interval:
            credit = now - self.read_at - interval
        readings = dict(self.readings)
        for key, value in values.items():
            old = readings.get(key)
            reading = None if old is not None and old.value == value else _new_reading(value, now)
            if reading is not None and (old is None or reading.is_newer_than(old)):
                old = readings[key] = _dated(reading, old)
            if old is not None and credit:
                readings[key] = evolve(old, changed_at=min(now, old.changed_at + credit))
        return Liveness(readings, now)

    def silent_for(self, key: str) -> float:
        """Return for how many seconds ``key`` was seen unchanged, up to the last reading; 0 if it was never read."""
        old = self.readings.get(key)
        return 0.0 if old is None or self.read_at is None else max(0.0, self.read_at - old.changed_at)

    def next_expiry(self, keys: Iterable[str], now: float, interval: float, limit: float) -> float | None:
        """Return when the first of ``keys`` that has missed a heartbeat will have been silent for ``limit`` seconds."""
        times = [
            old.changed_at + (limit if old.value is not None else 2 * limit)
            for key in keys
            if (old := self.readings.get(key)) and now - old.changed_at > interval
        ]
        return min((time for time in times if time > now), default=None)

    def heartbeat(self, key: str) -> Heartbeat | None:
        """Return the last heartbeat read from ``key``."""
        old = self.readings.get(key)
        return None if old is None or old.value is None else Heartbeat.decode(old.value)

    def count_of(self, key: str) -> int:
        """Return the counter of the last heartbeat read from ``key``, 0 before the first."""
        old = self.readings.get(key)
        return 0 if old is None else old.count

    def exists(self, key: str) -> bool:
        """Return whether ``key`` existed when it was last read."""
        old = self.readings.get(key)
        return old is not None and old.value is not None

    def was_read(self, key: str) -> bool:
        """Return whether ``key`` was read at all."""
        return key in self.readings

    def has_moved(self, key: str) -> bool:
        """Return whether the node behind ``key`` has sent a heartbeat since the first reading."""
        old = self.readings.get(key)
        return old is not None and old.has_moved

    def has_left(self, key: str) -> bool:
        """Return whether the node behind ``key`` reported that it has left."""
        old = self.readings.get(key)
        return old is not None and old.has_left

    def is_gone(self, key: str, limit: float) -> bool:
        """Return whether the node behind ``key`` has left, or was silent for more than ``limit`` seconds."""
        return self.has_left(key) or self.is_silent(key, limit)

    def is_silent(self, key: str, limit: float) -> bool:
        """Return whether the node behind ``key`` was silent for more than ``limit`` seconds.

        One that has not sent any heartbeat yet, which may be on a slow network, has twice as long.
        """
        return self.silent_for(key) > (limit if self.exists(key) else 2 * limit)
