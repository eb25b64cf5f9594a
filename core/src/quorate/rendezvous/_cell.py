"""``CellStore``: a whole store in one compare-and-swap cell (a ConfigMap, a conditional put), for small jobs.

Every write rewrites the cell, so this is for tens of nodes; a proper key-value store scales further.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, final

from ..clock import monotonic, seconds_until
from ..errors import StoreCorruptError, StoreUnavailableError
from ._store import parse_counter

_T = TypeVar("_T")


class Cell(Protocol):
    """One value with a version that changes at every write.  All methods may raise StoreUnavailableError."""

    def read(self) -> tuple[bytes, str]:
        """Return ``(value, version)``; ``(b"", version)`` for a cell that was never written."""
        ...

    def swap(self, version: str, value: bytes) -> bool:
        """Write ``value`` if the version still is ``version``; returns whether it was written."""
        ...

    def wait_for_change(self, version: str, timeout: float) -> None:
        """Return once the version differs from ``version``, or after ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Release the connection."""
        ...


@final
class CellStore:
    """Builds a store from a :class:`Cell`.  Has the ability ``batch``.

    Arguments:
        cell: where the whole content lives.
        write_timeout: seconds after which a write gives up if other writers were always faster.
    """

    def __init__(self, cell: Cell, write_timeout: float = 5.0) -> None:
        self._cell = cell
        self._write_timeout = write_timeout

    def _load(self) -> tuple[dict[str, bytes], str]:
        raw, version = self._cell.read()
        if not raw:
            return {}, version
        try:
            data = json.loads(raw)
            return {str(key): base64.b64decode(value, validate=True) for key, value in data.items()}, version
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise StoreCorruptError("cell", "it is not a JSON object of base64 values") from None

    def _change(self, change: Callable[[dict[str, bytes]], tuple[bool, _T]]) -> _T:
        """Apply ``change``, which returns whether to write and the result, until no other writer interferes."""
        deadline = monotonic() + self._write_timeout
        while True:
            values, version = self._load()
            write, result = change(values)
            if not write:
                return result
            data = {key: base64.b64encode(value).decode() for key, value in values.items()}
            if self._cell.swap(version, json.dumps(data, separators=(",", ":")).encode()):
                return result
            if monotonic() > deadline:
                raise StoreUnavailableError(
                    f"the cell was changed by others without a pause for {self._write_timeout:g} s"
                )

    def create(self, key: str, value: bytes) -> bool:
        def change(values: dict[str, bytes]) -> tuple[bool, bool]:
            if key in values:
                return False, False
            values[key] = value
            return True, True

        return self._change(change)

    def put(self, key: str, value: bytes) -> None:
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        def change(values: dict[str, bytes]) -> tuple[bool, None]:
            values.update(items)
            return True, None

        self._change(change)

    def add(self, key: str, amount: int) -> int:
        def change(values: dict[str, bytes]) -> tuple[bool, int]:
            count = parse_counter(key, values.get(key)) + amount
            values[key] = b"%d" % count
            return amount != 0, count

        return self._change(change)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        values, _ = self._load()
        return [values.get(key) for key in keys]

    def wait(self, key: str, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        while True:
            values, version = self._load()
            if key in values or deadline <= monotonic():
                return values.get(key)
            self._cell.wait_for_change(version, seconds_until(deadline))

    def delete(self, prefix: str) -> None:
        def change(values: dict[str, bytes]) -> tuple[bool, None]:
            doomed = [key for key in values if key.startswith(prefix)]
            for key in doomed:
                del values[key]
            return bool(doomed), None

        self._change(change)

    def close(self) -> None:
        self._cell.close()
