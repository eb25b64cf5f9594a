"""The store of a node that is left alone after its job has ended: what one member knows, and what this node writes.

A member without the others takes no writes.  A node that was away as the others ended needs some to go on to the
recorded end: its heartbeats, its place in line.  Nobody else reads them, so they stay here.

What does not live here: how a node knows that the job has ended (:mod:`.store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from quorate.rendezvous import InMemoryStore

if TYPE_CHECKING:
    from .._v3.store import EtcdStore


@final
class LeftAlone:
    """Implements Store, over what ``member`` knows.  All methods raise StoreUnavailableError: it does not answer."""

    def __init__(self, member: EtcdStore) -> None:
        self._member = member
        self._values, self._added = InMemoryStore(), InMemoryStore()

    def create(self, key: str, value: bytes) -> bool:
        """See :class:`quorate.rendezvous.Store`, as for all methods below."""
        return self.get([key])[0] is None and self._values.create(key, value)

    def put(self, key: str, value: bytes) -> None:
        self._values.put(key, value)

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        self._values.put_many(items)

    def add(self, key: str, amount: int) -> int:
        return self._member.count_here(key) + self._added.add(key, amount)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        found = zip(self._values.get(keys), self._member.get_here(keys), strict=True)
        return [known if own is None else own for own, known in found]

    def wait(self, key: str, timeout: float) -> bytes | None:
        found = self.get([key])[0]
        written = self._values.wait(key, timeout if found is None else 0.0)  # which an interrupt ends
        return written if found is None else found

    def interrupt(self) -> None:
        """Make a wait that is under way return soon; without one, the next wait returns at once."""
        self._values.interrupt()

    def delete(self, prefix: str) -> None:
        """Keep everything: it ends with this node."""
