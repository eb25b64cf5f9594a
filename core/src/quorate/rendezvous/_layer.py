"""Stores of the core's own that lie over another store: they keep what they are given there in another form.

A layer says what becomes of a key and of a value, and has the optional abilities that the store below has: one table
serves all layers.  What does not live here: the layers (``_signed``, ``_incarnation_store``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from ._store import (
    AttentiveStore,
    BatchStore,
    HostedStore,
    InterruptibleStore,
    LastWordStore,
    LastWordWriter,
    Store,
    Write,
    ends_with_host,
    put_many,
)

_L = TypeVar("_L", bound="Layer")


class Layer(ABC):
    """Implements :class:`quorate.rendezvous.Store` for writes; a subclass reads.  Made by :func:`lay_over`."""

    def __init__(self, below: Store) -> None:
        self.below = below

    @abstractmethod
    def _name(self, key: str) -> str:
        """Return the name of ``key`` in the store below."""

    def _value(self, name: str, value: bytes) -> bytes:
        """Return ``value`` as it stands under ``name`` in the store below; as it is, unless a layer says otherwise."""
        return value

    def _write(self, write: Write) -> Write:
        name = self._name(write.key)
        return Write(name, self._value(name, write.value), write.once)

    def writes_below(self, writes: Sequence[Write]) -> Sequence[Write]:
        """Return ``writes`` as they are made in the backend's store."""
        return writes_below(self.below, list(map(self._write, writes)))

    def create(self, key: str, value: bytes) -> bool:
        """See :class:`quorate.rendezvous.Store`, as for all methods below."""
        name = self._name(key)
        return self.below.create(name, self._value(name, value))

    def put(self, key: str, value: bytes) -> None:
        name = self._name(key)
        self.below.put(name, self._value(name, value))

    def add(self, key: str, amount: int) -> int:
        return self.below.add(self._name(key), amount)

    @abstractmethod
    def get(self, keys: Sequence[str]) -> list[bytes | None]: ...

    @abstractmethod
    def wait(self, key: str, timeout: float) -> bytes | None: ...

    @abstractmethod
    def delete(self, prefix: str) -> None: ...

    def close(self) -> None:
        self.below.close()


def writes_below(store: Store, writes: Sequence[Write]) -> Sequence[Write]:
    """Return ``writes`` as they are made in the backend's store: unchanged if ``store`` is that."""
    return store.writes_below(writes) if isinstance(store, Layer) else writes


# --- abilities --------------------------------------------------------------------------------------------------------


class _Batch(Layer):
    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See :class:`quorate.rendezvous.BatchStore`."""
        named = [(self._name(key), value) for key, value in items]
        put_many(self.below, [(name, self._value(name, value)) for name, value in named])


class _Interruptible(Layer):
    def interrupt(self) -> None:
        """See :class:`quorate.rendezvous.InterruptibleStore`."""
        assert isinstance(self.below, InterruptibleStore)
        self.below.interrupt()


class _Hosted(Layer):
    @property
    def is_host(self) -> bool:
        """See :class:`quorate.rendezvous.HostedStore`."""
        assert isinstance(self.below, HostedStore)
        return self.below.is_host

    @property
    def ends_with_this_node(self) -> bool:
        return ends_with_host(self.below)


class _LastWord(Layer):
    def last_word_writer(self) -> LastWordWriter:
        """See :class:`quorate.rendezvous.LastWordStore`."""
        assert isinstance(self.below, LastWordStore)
        return self.below.last_word_writer()


class _Attentive(Layer):
    @property
    def return_timeout(self) -> float:
        """See :class:`quorate.rendezvous.AttentiveStore`."""
        assert isinstance(self.below, AttentiveStore)
        return self.below.return_timeout

    def set_last_words(self, writes: Sequence[Write]) -> None:
        assert isinstance(self.below, AttentiveStore)
        self.below.set_last_words(list(map(self._write, writes)))


_ABILITIES: tuple[tuple[type, type[Layer]], ...] = (
    (BatchStore, _Batch),
    (InterruptibleStore, _Interruptible),
    (HostedStore, _Hosted),
    (LastWordStore, _LastWord),
    (AttentiveStore, _Attentive),
)


@cache
def _class_with(layer: type[Layer], abilities: tuple[type[Layer], ...]) -> Callable[..., Any]:
    return type(layer.__name__, (*abilities, layer), {"__doc__": layer.__doc__})


def lay_over(store: Store, layer: type[_L], *arguments: Any) -> _L:
    """Return a ``layer`` over ``store``; it has the optional abilities that ``store`` has, and no others.

    Arguments:
        store: the store below.
        layer: a class that is made from the store below and ``arguments``.
    """
    abilities = tuple(ability for kind, ability in _ABILITIES if isinstance(store, kind))
    made: _L = _class_with(layer, abilities)(store, *arguments)
    return made
