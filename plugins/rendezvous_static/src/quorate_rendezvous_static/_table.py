"""The TCP store's keys and values: every operation on them, and the bound on what they take.

What does not live here: who asks, who waits for a key, and how answers are sent (``_server``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from ._wire import LARGEST_FRAME, LARGEST_KEY, LARGEST_VALUE, Problem, WireError

LARGEST_COUNT = 1 << 62


@final
class RefusedRequestError(Exception):
    """A request is well-formed and cannot be carried out; the text is for the client."""

    def __init__(self, problem: Problem, sentence: str) -> None:
        self.problem = problem
        super().__init__(sentence)


@final
class Table:
    """Keys and values of at most ``limit_bytes`` together, each key with ``overhead_bytes`` on top."""

    def __init__(self, limit_bytes: int, overhead_bytes: int) -> None:
        self._limit_bytes, self._overhead_bytes = limit_bytes, overhead_bytes
        self._values: dict[bytes, bytes] = {}
        self._held_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``."""
        return self._values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of as many of ``keys``, from the first on, as one frame holds."""
        found: list[bytes | None] = []
        left = LARGEST_FRAME - 64
        for key in keys:
            value = self._values.get(key)
            left -= 4 + (len(value) if value is not None else 0)
            if left < 0:
                break
            found.append(value)
        return found

    def create(self, key: bytes, value: bytes) -> bool:
        """Write ``key`` unless it exists; returns whether it was written.  Raises what :meth:`put` raises."""
        if key in self._values:
            return False
        self.put([key], [value])
        return True

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Write all ``keys``, or none.

        Raises:
            WireError: a key or value is missing or too long.
            RefusedRequestError: the store is full.
        """
        if len(keys) != len(values) or any(len(value) > LARGEST_VALUE for value in values):
            raise WireError("a value is missing or too large")
        if any(len(key) > LARGEST_KEY for key in keys):
            raise WireError("a key is too long")
        added = sum(map(len, values)) + sum(
            len(key) + self._overhead_bytes for key in dict.fromkeys(keys) if key not in self._values
        )
        if self._held_bytes + added > self._limit_bytes:
            raise RefusedRequestError(Problem.FULL, f"it holds {self._held_bytes} bytes and takes no more")
        for key, value in zip(keys, values, strict=True):
            old = self._values.get(key)
            self._held_bytes += len(value) - len(old) if old is not None else self._size(key, value)
            self._values[key] = value

    def add(self, key: bytes, amount: int) -> int:
        """Add to a counter and return it.  Raises RefusedRequestError if ``key`` is not one, and as :meth:`put`."""
        held = self._values.get(key, b"0")
        try:
            count = int(held) + amount if len(held) <= 20 else LARGEST_COUNT
        except ValueError:
            count = LARGEST_COUNT
        if abs(count) >= LARGEST_COUNT:
            raise RefusedRequestError(Problem.NOT_A_COUNTER, "it is not a counter, or would overflow")
        self.put([key], [b"%d" % count])
        return count

    def delete(self, prefix: bytes) -> None:
        """Remove every key that starts with ``prefix``."""
        for key in [key for key in self._values if key.startswith(prefix)]:
            self._held_bytes -= self._size(key, self._values.pop(key))

    def _size(self, key: bytes, value: bytes) -> int:
        return len(key) + len(value) + self._overhead_bytes
