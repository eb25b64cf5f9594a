"""The part of a store that belongs to one incarnation of a run id (:mod:`._incarnation`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from ..errors import RendezvousStateError, StoreLostError
from ._layer import Layer, lay_over
from ._protocol import Key
from ._store import Store

#: The first characters of all keys of incarnation 0 but its records: a round's number, or the name of the hint.
_FIRST_DATA = (*"0123456789", Key.ROUND)


def over_key(number: int) -> str:
    """Return the key that says that an incarnation is over."""
    return f"incarnation/{number}/over"


def wrong_answer(store: Store, method: str, answer: Any) -> RendezvousStateError:
    """Return the error of a store that breaks its contract; names the class of the backend's own store."""
    while isinstance(store, Layer):
        store = store.below
    return RendezvousStateError(
        f"the store {type(store).__name__} broke its contract: {method} answered {answer!r:.100}; update its plugin"
    )


@final
class OverError(StoreLostError):
    """The incarnation is over."""


class IncarnationStore(Layer):
    """Implements :class:`quorate.rendezvous.Store` for one incarnation, over the store of all of them.

    Raises (``get``):
        StoreLostError: the incarnation is over, and its nodes were not seen any more.
    """

    def __init__(self, store: Store, number: int, run_id: str, keeps: bool) -> None:
        super().__init__(store)
        self.number, self._run_id, self._keeps = number, run_id, keeps
        self._prefix = f"incarnation/{number}/data/" if number else ""

    def _name(self, key: str) -> str:
        return self._prefix + key

    # --- the store --------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        found = self.below.get([over_key(self.number), *(self._prefix + key for key in keys)])
        if not isinstance(found, Sequence):
            return found  # it breaks the store's contract, which the caller reports
        if found and found[0] is not None:
            raise OverError(
                f"the job {self._run_id!r} went on without this node and is over; its run id may be in use by the next "
                "job. This happens to a node that stood still for longer than its lease (lease_timeout). Start it again"
            )
        return list(found[1:])

    def wait(self, key: str, timeout: float) -> bytes | None:
        return self.below.wait(self._prefix + key, timeout)

    def delete(self, prefix: str) -> None:
        self.below.delete(self._prefix + prefix)

    # --- its end ----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """All nodes have left: the next node under this run id begins a new incarnation.  Clears this one's keys."""
        self.below.create(over_key(self.number), b"left")
        self.clear()

    def clear(self) -> None:
        """Remove the keys of the incarnation, unless they are to be kept; those that tell incarnations apart stay."""
        if not self._keeps:
            for prefix in (self._prefix,) if self._prefix else _FIRST_DATA:
                self.below.delete(prefix)


def incarnation_store(store: Store, number: int, run_id: str, keeps: bool) -> IncarnationStore:
    """Return the store of one incarnation; it has the optional abilities that ``store`` has, and no others."""
    return lay_over(store, IncarnationStore, number, run_id, keeps)
