"""What the stores of the core promise beyond the laws of the conformance kit (``test_conformance``)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from quorate.errors import StoreCorruptError, StoreUnavailableError
from quorate.rendezvous import CellStore, InMemoryStore, Store

from .memory import MemoryCell


def memory() -> Callable[[], Store]:
    return InMemoryStore().clone


def cell() -> Callable[[], Store]:
    shared = MemoryCell()
    return lambda: CellStore(shared, write_timeout=60.0)


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_value(value: bytes) -> None:
    for make in (memory, cell):
        store = make()()
        store.put("k", value)
        assert store.get(["k"]) == [value]


def test_a_cell_of_garbage_is_corrupt() -> None:
    shared = MemoryCell()
    shared.value = b"\xff\x00 not ours"
    with pytest.raises(StoreCorruptError, match="cell"):
        CellStore(shared).get(["k"])


def test_a_cell_that_never_yields_is_unavailable() -> None:
    class Contested(MemoryCell):
        def swap(self, version: str, value: bytes) -> bool:
            return False

    with pytest.raises(StoreUnavailableError, match="changed by others"):
        CellStore(Contested(), write_timeout=0.01).put("k", b"v")
