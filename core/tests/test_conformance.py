"""The conformance kit on the stores of the core: the in-memory store, and one compare-and-swap cell."""

from __future__ import annotations

import pytest

from quorate.rendezvous import CellStore, InMemoryStore, RendezvousBackend
from quorate.testing import StoreConformance

from .memory import MemoryCell, shared_by_run

ABSENT = {
    "entry_point": "this backend is a part of the core, which has no entry point",
    "endpoint": "this backend lives in the test's own process",
    "partition": "this backend uses no network",
    "pause": "this backend has no server",
    "restart": "this backend has no server",
}


class TestInMemoryStore(StoreConformance):
    backend = RendezvousBackend("memory", "for tests", open_store=shared_by_run(InMemoryStore, InMemoryStore.clone))
    absent = ABSENT

    @pytest.fixture
    def server(self) -> str:
        return ""


class TestCellStore(StoreConformance):
    backend = RendezvousBackend("cell", "for tests", open_store=shared_by_run(MemoryCell, CellStore))
    absent = {**ABSENT, "interrupt": "a wait for a cell is repeated in slices, which nothing interrupts"}

    @pytest.fixture
    def server(self) -> str:
        return ""


class TestSignedInMemoryStore(TestInMemoryStore):
    signed = True
