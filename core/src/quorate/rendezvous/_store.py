"""The store contract: the small linearizable key-value interface from which the core builds the whole protocol.

What does not live here: the protocol (:mod:`quorate.rendezvous._machine`) and any particular store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, final, runtime_checkable

from .._isolation import call_plugin, shown
from ..errors import PluginError, StoreCorruptError

_T = TypeVar("_T")
_MOST_DIGITS = 100


@runtime_checkable
class Store(Protocol):
    """A linearizable key-value store.  Keys are ASCII strings, values any bytes from 0 B to 1 MiB.

    A signature (:func:`quorate.rendezvous.sign_store`) adds 33 bytes to a value, so that a store should take 1 MiB and
    64 B, and 21 characters to a key.

    Threads: one thread calls :meth:`wait`, another everything else; both may be under way at once, so an
    implementation keeps one connection to work and one to wait.  Each method returns within the backend's own
    operation deadline (:meth:`wait`: its ``timeout``).

    Raises (every method):
        StoreUnavailableError: no answer; a write may or may not have been applied.
        StoreLostError: the store and what it held are gone for good.
    """

    def create(self, key: str, value: bytes) -> bool:
        """Write ``key`` once.  Returns whether this call wrote it; ``False`` if it existed, even with equal bytes."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Write ``key``; the last write wins.  Only ever called for keys that one node owns."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to the integer counter ``key`` (0 if absent), atomically; returns the new count."""
        ...

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, ``None`` where absent, at once.  One round trip if possible."""
        ...

    def wait(self, key: str, timeout: float) -> bytes | None:
        """Block until ``key`` exists and return its value; ``None`` once ``timeout`` seconds have passed.

        Must wake as soon as the key is written.
        """
        ...

    def delete(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``."""
        ...

    def close(self) -> None:
        """Release connections, threads and servers.  May be called twice; later calls of other methods may raise."""
        ...


_METHODS = ("add", "close", "create", "delete", "get", "put", "wait")


def open_checked(backend: str, open_store: Callable[[_T], Store], parameters: _T) -> Store:
    """Open a backend's store.

    Raises:
        QuorateError: what ``open_store`` raised, if it is one.
        PluginError: ``open_store`` raised anything else, or returned what is not a store; names the backend.
    """
    what = f"rendezvous backend {backend!r}"
    store = call_plugin(what, open_store, parameters)
    lacking = next((name for name in _METHODS if not callable(getattr(store, name, None))), "")
    if lacking:
        raise PluginError(f"{what} opened {shown(store)}, which is not a store: it has no {lacking}()")
    return store


@runtime_checkable
class BatchStore(Store, Protocol):
    """The optional ability ``batch``: many puts in one round trip (not necessarily atomic)."""

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write all ``items`` (key, value)."""
        ...


@runtime_checkable
class InterruptibleStore(Store, Protocol):
    """The optional ability ``interrupt``.  Without it the core waits in slices of at most a second."""

    def interrupt(self) -> None:
        """Make a :meth:`wait` that is under way in another thread return ``None`` soon.  Never blocks."""
        ...


@runtime_checkable
class HostedStore(Store, Protocol):
    """The optional ability ``hosted``: one of the nodes serves the store, which ends with that node.

    A store whose attribute ``ends_with_this_node`` says otherwise has other hosts, too.
    """

    @property
    def is_host(self) -> bool:
        """Whether the store ends when this node closes it."""
        ...


@final
class Write(NamedTuple):
    """One write that another process makes for a node: ``create`` where ``once`` is set, ``put`` otherwise."""

    key: str
    value: bytes
    once: bool = False


LastWordWriter = Callable[[Sequence[Write]], None]


@runtime_checkable
class LastWordStore(Store, Protocol):
    """The optional ability ``last word``: another process can write for a node whose agent was killed."""

    def last_word_writer(self) -> LastWordWriter:
        """Return what makes these writes, in order, within a few seconds and at most once.

        It is a function of a module, or a ``functools.partial`` of one: it is pickled, and called in a process that
        shares no memory with this one.  It may raise.  What takes long to import (torch) must not be needed.
        """
        ...


@runtime_checkable
class AttentiveStore(Store, Protocol):
    """The optional ability ``attentive``: the store notices a node whose connections close without a goodbye."""

    @property
    def return_timeout(self) -> float:
        """How long such a node has to come back, in seconds."""
        ...

    def set_last_words(self, writes: Sequence[Write]) -> None:
        """Have the store make these writes if that happens to this node; they replace the ones before."""
        ...


@runtime_checkable
class PortLendingStore(Store, Protocol):
    """The optional ability ``lends port``: the store's host listens on a port that the workers need while they run."""

    def lend_port(self) -> None:
        """A round has begun: free the port.  Called before the workers start; takes a moment at most."""
        ...

    def take_port_back(self) -> None:
        """The workers are gone: listen again as soon as that is possible.  Does not wait."""
        ...


def ends_with_host(store: Store) -> bool:
    """Return whether this node hosts the store, and no other does."""
    is_host = isinstance(store, HostedStore) and store.is_host
    return bool(getattr(store, "ends_with_this_node", is_host))


def put_many(store: Store, items: Sequence[tuple[str, bytes]]) -> None:
    """Write ``items`` with the store's ``batch`` ability where it has one, one by one where not."""
    if isinstance(store, BatchStore):
        store.put_many(items)
        return
    for key, value in items:
        store.put(key, value)


def parse_counter(key: str, value: bytes | None) -> int:
    """Return the count that a store holds under ``key``; an absent one is 0.

    Raises:
        StoreCorruptError: the value is not a count.
    """
    text = b"0" if value is None else value
    if len(text) > _MOST_DIGITS or not text.removeprefix(b"-").isdigit():
        raise StoreCorruptError(key, "it is not a counter")
    return int(text)
