"""The store contract, on the in-memory store and on a store built from one compare-and-swap cell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.clock import monotonic
from quorate.errors import StoreCorruptError, StoreUnavailableError
from quorate.rendezvous import CellStore, InMemoryStore, Store


class MemoryCell:
    """A compare-and-swap cell shared by the threads of this process."""

    def __init__(self) -> None:
        self.value, self.number, self.changed = b"", 0, threading.Condition()

    def read(self) -> tuple[bytes, str]:
        with self.changed:
            return self.value, str(self.number)

    def swap(self, version: str, value: bytes) -> bool:
        with self.changed:
            if version != str(self.number):
                return False
            self.value, self.number = value, self.number + 1
            self.changed.notify_all()
            return True

    def wait_for_change(self, version: str, timeout: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: str(self.number) != version, timeout)

    def close(self) -> None:
        pass


def memory() -> Callable[[], Store]:
    return InMemoryStore().clone


def cell() -> Callable[[], Store]:
    shared = MemoryCell()
    return lambda: CellStore(shared, write_timeout=60.0)


@pytest.fixture(params=[memory, cell])
def new_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    make: Callable[[], Callable[[], Store]] = request.param
    factory = make()
    opened: list[Store] = []

    def new() -> Store:
        store = factory()
        opened.append(store)
        return store

    yield new
    for store in opened:
        store.close()


def race(count: int, action: Callable[[int], object]) -> list[object]:
    results: list[object] = [None] * count
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        barrier.wait(10)
        results[index] = action(index)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_create_has_one_winner_even_with_equal_bytes(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(8)]
    assert race(8, lambda i: stores[i].create("k", b"same")).count(True) == 1


def test_counters_are_exact(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(6)]
    race(6, lambda i: [stores[i].add("n", 1) for _ in range(20)])
    assert stores[0].add("n", 0) == 120


def test_get_answers_in_order_and_none_where_absent(new_store: Callable[[], Store]) -> None:
    store = new_store()
    store.put("b", b"2")
    store.put("a", b"")
    assert store.get(["a", "missing", "b", "a"]) == [b"", None, b"2", b""]
    assert store.get([]) == []


def test_wait_wakes_when_the_key_is_written(new_store: Callable[[], Store]) -> None:
    store, other = new_store(), new_store()
    thread = threading.Thread(target=lambda: other.create("k", b"v"))
    thread.start()
    assert store.wait("k", 30) == b"v"
    thread.join()


def test_wait_ends_at_its_deadline(new_store: Callable[[], Store]) -> None:
    began = monotonic()
    assert new_store().wait("k", 0.05) is None
    assert monotonic() - began >= 0.05


def test_delete_removes_a_prefix_only(new_store: Callable[[], Store]) -> None:
    store = new_store()
    for key in ("1/a", "1/b", "10/a"):
        store.put(key, b"x")
    store.delete("1/")
    assert store.get(["1/a", "1/b", "10/a"]) == [None, None, b"x"]


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_value(value: bytes) -> None:
    for make in (memory, cell):
        store = make()()
        store.put("k", value)
        assert store.get(["k"]) == [value]


def test_an_interrupted_wait_returns() -> None:
    store = InMemoryStore()
    timer = threading.Timer(0.01, store.interrupt)
    timer.start()
    assert store.wait("k", 30) is None
    timer.join()


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
