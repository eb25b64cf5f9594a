"""The in-memory store: the reference implementation of the store contract, for tests and simulation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import final

from ..clock import monotonic, seconds_until
from ._store import parse_counter


@final
class InMemoryStore:
    """A store shared by the threads of one process.  Has the abilities ``batch`` and ``interrupt``.

    Several nodes in one process share the data through :meth:`clone`, which gives each its own :meth:`interrupt`.
    """

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._interrupted = False
        self._closed = False

    def clone(self) -> InMemoryStore:
        """Return another handle on the same data."""
        other = InMemoryStore()
        other._values, other._changed = self._values, self._changed
        return other

    def create(self, key: str, value: bytes) -> bool:
        with self._changed:
            if key in self._values:
                return False
            self._values[key] = value
            self._changed.notify_all()
            return True

    def put(self, key: str, value: bytes) -> None:
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        with self._changed:
            self._values.update(items)
            self._changed.notify_all()

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            count = parse_counter(key, self._values.get(key)) + amount
            self._values[key] = b"%d" % count
            self._changed.notify_all()
            return count

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._changed:
            return [self._values.get(key) for key in keys]

    def wait(self, key: str, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        with self._changed:
            while key not in self._values and not self._interrupted:
                if deadline <= monotonic():
                    return None
                self._changed.wait(seconds_until(deadline))
            self._interrupted = False
            return self._values.get(key)

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def delete(self, prefix: str) -> None:
        with self._changed:
            for key in [key for key in self._values if key.startswith(prefix)]:
                del self._values[key]

    def close(self) -> None:
        self._closed = True
        self.interrupt()
