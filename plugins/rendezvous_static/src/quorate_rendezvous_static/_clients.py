"""The clients of a server: which connections belong to which client, and what is written when a client is lost.

A client has two connections.  It is lost if both have closed, it has left last words, and it does not come back within
the time that it asked for.  A machine that vanishes closes nothing, and is not noticed here.  What does not live here:
the connections (``_peers``) and the table (``_table``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from attrs import define

from quorate.clock import monotonic

from ._limits import Limits
from ._table import RefusedRequestError, Table
from ._wire import LARGEST_KEY, Code, WireError

LONGEST_CLIENT = 64
_MOST_WRITES = 16
_KINDS = {b"%d" % Code.CREATE: True, b"%d" % Code.PUT: False}


@final
class LastWrite(NamedTuple):
    """One of a client's last words."""

    is_create: bool
    key: bytes
    value: bytes


@final
@define(eq=False)
class _Client:
    connections: int = 0
    seconds: float = 0.0
    words: tuple[LastWrite, ...] = ()
    lost_at: float | None = None


@final
class Clients:
    """Used by the server's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._clients: dict[bytes, _Client] = {}

    def connected(self, name: bytes) -> None:
        """A connection of the client ``name`` is there."""
        client = self._clients.setdefault(name, _Client())
        client.connections += 1
        client.lost_at = None

    def disconnected(self, name: bytes) -> None:
        """A connection of the client has closed."""
        client = self._clients.get(name)
        if client is None:
            return
        client.connections -= 1
        if client.connections > 0:
            return
        if client.words:
            client.lost_at = monotonic() + client.seconds
        else:
            del self._clients[name]

    def set_words(self, name: bytes, seconds: float, items: Sequence[bytes]) -> None:
        """Replace what is written if the client is lost.  Raises WireError."""
        client = self._clients.get(name)
        if client is None or len(items) % 3 or len(items) > 3 * _MOST_WRITES:
            raise WireError("these are not last words")
        if sum(map(len, items)) > self._limits.last_words_bytes or any(len(key) > LARGEST_KEY for key in items[1::3]):
            raise WireError("the last words are too long")
        kinds = [_KINDS.get(kind) for kind in items[::3]]
        if None in kinds:
            raise WireError("last words can create and put")
        client.words = tuple(
            LastWrite(bool(kind), key, value) for kind, key, value in zip(kinds, items[1::3], items[2::3], strict=True)
        )
        client.seconds = min(max(0.0, seconds), self._limits.longest_return_seconds)

    def next_deadline(self) -> float | None:
        """Return when the next client is lost."""
        return min((client.lost_at for client in self._clients.values() if client.lost_at is not None), default=None)

    def write_for_lost(self, table: Table, now: float) -> list[bytes]:
        """Write the last words of the clients that are lost; return the keys that were written."""
        lost = [name for name, client in self._clients.items() if client.lost_at is not None and client.lost_at <= now]
        return [word.key for name in lost for word in self._clients.pop(name).words if _write(table, word)]


def _write(table: Table, word: LastWrite) -> bool:
    try:
        if word.is_create:
            return table.create(word.key, word.value)
        table.put([word.key], [word.value])
    except RefusedRequestError:
        return False  # the store is full; the lease remains
    return True
