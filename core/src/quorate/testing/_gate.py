"""A gate between one node and its store: it counts the node's calls, and cuts the node off like a crash or a pause.

What does not live here: faults of the server itself, which the author of a test brings (``_servers``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, final

from attrs import evolve

from ..errors import StoreUnavailableError
from ..rendezvous import (
    BatchStore,
    HostedStore,
    InterruptibleStore,
    RendezvousBackend,
    RendezvousParameters,
    Store,
)


@final
class Gate:
    """Lets calls through until it is shut; calls then hang until it is opened, like those of a stopped process.

    Arguments:
        limit: shut after this many calls have been carried out; ``None``: stay open.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._is_shut = limit == 0
        self.calls = 0

    @property
    def is_shut(self) -> bool:
        """Whether the node is cut off."""
        return self._is_shut

    def shut(self) -> None:
        """Cut the node off from now on."""
        with self._changed:
            self._is_shut = True

    def open(self) -> None:
        """Let all calls through again, also those that hang."""
        with self._changed:
            self._is_shut, self._limit = False, None
            self._changed.notify_all()

    def pass_through(self) -> None:
        """Wait until the gate is open, and count this call."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self.calls += 1
            if self._limit is not None and self.calls > self._limit:
                self._is_shut = True
                self._changed.wait_for(lambda: not self._is_shut)

    def hold_answer(self) -> None:
        """Hold an answer back while the gate is shut: a crashed node gets no answers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)


class _GatedStore:
    def __init__(self, store: Any, gate: Gate) -> None:
        self._store, self._gate = store, gate

    def _call(self, name: str, *arguments: Any) -> Any:
        self._gate.pass_through()
        try:
            return getattr(self._store, name)(*arguments)
        finally:
            self._gate.hold_answer()

    def create(self, key: str, value: bytes) -> Any:
        return self._call("create", key, value)

    def put(self, key: str, value: bytes) -> Any:
        return self._call("put", key, value)

    def add(self, key: str, amount: int) -> Any:
        return self._call("add", key, amount)

    def get(self, keys: Sequence[str]) -> Any:
        return self._call("get", keys)

    def wait(self, key: str, timeout: float) -> Any:
        # A wait changes nothing in the store: it is cut off, but not counted.
        self._gate.hold_answer()
        value = self._store.wait(key, timeout)
        self._gate.hold_answer()
        return value

    def delete(self, prefix: str) -> Any:
        return self._call("delete", prefix)

    def close(self) -> None:
        self._store.close()


def _gate_store(store: Store, gate: Gate) -> Store:
    """Return ``store`` behind ``gate``, with the abilities that it has and no others."""
    methods: dict[str, Any] = {}
    if isinstance(store, BatchStore):
        methods["put_many"] = lambda self, items: self._call("put_many", items)
    if isinstance(store, InterruptibleStore):
        methods["interrupt"] = lambda self: self._store.interrupt()
    if isinstance(store, HostedStore):
        methods["is_host"] = property(lambda self: self._store.is_host)
    made: Store = type("GatedStore", (_GatedStore,), methods)(store, gate)
    return made


def gated(backend: RendezvousBackend, gate: Gate) -> RendezvousBackend:
    """Return ``backend`` with its store behind ``gate``."""
    opener = backend.open_store
    assert opener is not None, "only a store can be cut off from one node"

    def open_store(parameters: RendezvousParameters) -> Store:
        if gate.is_shut:
            raise StoreUnavailableError("this node is cut off")
        return _gate_store(opener(parameters), gate)

    return evolve(backend, open_store=open_store)
