"""The part of a store that belongs to one incarnation of a run id (:mod:`._incarnation`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, final

from ..errors import RendezvousStateError, StoreLostError
from ._protocol import Key
from ._store import (
    AttentiveStore,
    BatchStore,
    InterruptibleStore,
    LastWordStore,
    LastWordWriter,
    Store,
    Write,
    put_many,
    writes_below,
)

__all__ = ["IncarnationStore", "OverError", "incarnation_store", "over_key", "wrong_answer"]

#: The first characters of all keys of incarnation 0 but its records: a round's number, or the name of the hint.
_FIRST_DATA = (*"0123456789", Key.ROUND)


def over_key(number: int) -> str:
    """Return the key that says that an incarnation is over."""
    return f"incarnation/{number}/over"


def wrong_answer(store: Store, method: str, answer: Any) -> RendezvousStateError:
    """Return the error of a store that breaks its contract; names the class of the backend's own store."""
    name = type(store.below if isinstance(store, IncarnationStore) else store).__name__
    return RendezvousStateError(
        f"the store {name} broke its contract: {method} answered {answer!r:.100}; update its plugin"
    )


@final
class OverError(StoreLostError):
    """The incarnation is over."""


class IncarnationStore:
    """Implements :class:`quorate.rendezvous.Store` for one incarnation, over the store of all of them.

    Raises (``get``):
        StoreLostError: the incarnation is over, and its nodes were not seen any more.
    """

    def __init__(self, store: Store, number: int, run_id: str, keeps: bool) -> None:
        self._store, self.number, self._run_id, self._keeps = store, number, run_id, keeps
        self._prefix = f"incarnation/{number}/data/" if number else ""

    @property
    def below(self) -> Store:
        """The store of all incarnations."""
        return self._store

    def create(self, key: str, value: bytes) -> bool:
        """See :class:`quorate.rendezvous.Store`, as for all methods below."""
        return self._store.create(self._prefix + key, value)

    def put(self, key: str, value: bytes) -> None:
        self._store.put(self._prefix + key, value)

    def add(self, key: str, amount: int) -> int:
        return self._store.add(self._prefix + key, amount)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        found = self._store.get([over_key(self.number), *(self._prefix + key for key in keys)])
        if not isinstance(found, Sequence):
            return found  # it breaks the store's contract, which the caller reports
        if found and found[0] is not None:
            raise OverError(
                f"the job {self._run_id!r} went on without this node and is over; its run id may be in use by the next "
                "job. This happens to a node that stood still for longer than its lease (lease_timeout). Start it again"
            )
        return list(found[1:])

    def wait(self, key: str, timeout: float) -> bytes | None:
        return self._store.wait(self._prefix + key, timeout)

    def delete(self, prefix: str) -> None:
        self._store.delete(self._prefix + prefix)

    def close(self) -> None:
        self._store.close()

    def _prefixed(self, writes: Sequence[Write]) -> list[Write]:
        return [Write(self._prefix + write.key, write.value, write.once) for write in writes]

    def writes_below(self, writes: Sequence[Write]) -> Sequence[Write]:
        """See :class:`._store.StoreLayer`."""
        return writes_below(self._store, self._prefixed(writes))

    def end(self) -> None:
        """All nodes have left: the next node under this run id begins a new incarnation.  Clears this one's keys."""
        self._store.create(over_key(self.number), b"left")
        self.clear()

    def clear(self) -> None:
        """Remove the keys of the incarnation, unless they are to be kept; those that tell incarnations apart stay."""
        if not self._keeps:
            for prefix in (self._prefix,) if self._prefix else _FIRST_DATA:
                self._store.delete(prefix)


class _Batch(IncarnationStore):
    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See :class:`quorate.rendezvous.BatchStore`."""
        put_many(self._store, [(self._prefix + key, value) for key, value in items])


class _Interruptible(IncarnationStore):
    def interrupt(self) -> None:
        """See :class:`quorate.rendezvous.InterruptibleStore`."""
        assert isinstance(self._store, InterruptibleStore)
        self._store.interrupt()


class _LastWord(IncarnationStore):
    def last_word_writer(self) -> LastWordWriter:
        """See :class:`quorate.rendezvous.LastWordStore`."""
        assert isinstance(self._store, LastWordStore)
        return self._store.last_word_writer()


class _Attentive(IncarnationStore):
    @property
    def return_timeout(self) -> float:
        """See :class:`quorate.rendezvous.AttentiveStore`."""
        assert isinstance(self._store, AttentiveStore)
        return self._store.return_timeout

    def set_last_words(self, writes: Sequence[Write]) -> None:
        assert isinstance(self._store, AttentiveStore)
        self._store.set_last_words(self._prefixed(writes))


_ABILITIES: tuple[tuple[type, type[IncarnationStore]], ...] = (
    (BatchStore, _Batch),
    (InterruptibleStore, _Interruptible),
    (LastWordStore, _LastWord),
    (AttentiveStore, _Attentive),
)


@cache
def _class_with(abilities: tuple[type[IncarnationStore], ...]) -> type[IncarnationStore]:
    return type("IncarnationStore", (*abilities, IncarnationStore), {"__doc__": IncarnationStore.__doc__})


def incarnation_store(store: Store, number: int, run_id: str, keeps: bool) -> IncarnationStore:
    """Return the store of one incarnation; it has the optional abilities that ``store`` has, and no others."""
    abilities = tuple(layer for ability, layer in _ABILITIES if isinstance(store, ability))
    return _class_with(abilities)(store, number, run_id, keeps)
