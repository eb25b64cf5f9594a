"""The store of a node that is left alone after its job has ended: what one member knows, and what this node writes.

A member without the others takes no writes.  A node that was away as the others ended needs some to go on to the
recorded end: its heartbeats, its place in line.  Nobody else reads them, so they stay here.

What does not live here: how a node knows that the job has ended (:mod:`.store`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol, final

from quorate.clock import monotonic

__all__ = ["LeftAlone"]


class _Member(Protocol):
    """What is asked of the member."""

    def get_here(self, keys: Sequence[str]) -> list[bytes | None]: ...

    def count_here(self, key: str) -> int: ...


@final
class LeftAlone:
    """Implements Store, over what ``member`` knows.  All methods raise StoreUnavailableError: it does not answer."""

    def __init__(self, member: _Member) -> None:
        self._member = member
        self._changed = threading.Condition()
        self._values: dict[str, bytes] = {}
        self._added: dict[str, int] = {}
        self._interrupts = 0

    def create(self, key: str, value: bytes) -> bool:
        """See :class:`quorate.rendezvous.Store`, as for all methods below."""
        with self._changed:
            if self.get([key])[0] is not None:
                return False
            self.put(key, value)
            return True

    def put(self, key: str, value: bytes) -> None:
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        with self._changed:
            self._values.update(items)
            self._changed.notify_all()

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            count = self._member.count_here(key) + self._added.get(key, 0) + amount
            self._added[key] = self._added.get(key, 0) + amount
            return count

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._changed:
            found = self._member.get_here(keys)
            return [self._values.get(key, value) for key, value in zip(keys, found, strict=True)]

    def wait(self, key: str, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        with self._changed:
            while (value := self.get([key])[0]) is None and not self._interrupts and monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - monotonic()))
            self._interrupts = 0
            return value

    def interrupt(self) -> None:
        """Make a wait that is under way return soon; without one, the next wait returns at once."""
        with self._changed:
            self._interrupts = 1
            self._changed.notify_all()

    def delete(self, prefix: str) -> None:
        """Keep everything: it ends with this node."""
