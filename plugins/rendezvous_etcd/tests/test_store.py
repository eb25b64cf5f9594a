"""The store's promises on a real etcd, each operation applied exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.errors import StoreCorruptError, StoreLostError, StoreUnavailableError, UsageError
from quorate.rendezvous import BatchStore, HostedStore, InterruptibleStore, Store
from quorate_rendezvous_etcd import EtcdServer
from quorate_rendezvous_etcd._v3.http2 import CallError

from .etcd_harness import Admin, InThread

Open = Callable[..., Any]


def test_abilities_are_declared(open_store: Open) -> None:
    store = open_store()
    assert isinstance(store, Store)
    assert isinstance(store, BatchStore)
    assert isinstance(store, InterruptibleStore)
    assert not isinstance(store, HostedStore)


def test_create_writes_once_even_for_equal_bytes(open_store: Open) -> None:
    first, second = open_store(), open_store()
    assert first.create("key", b"same")
    assert not second.create("key", b"same")
    assert not first.create("key", b"same")
    assert second.get(["key"]) == [b"same"]


def test_creators_that_race_have_one_winner(open_store: Open) -> None:
    stores = [open_store() for _ in range(4)]
    for attempt in range(10):
        barrier = threading.Barrier(len(stores))

        def race(store: Any, attempt: int = attempt, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return bool(store.create(f"race/{attempt}", b"equal bytes"))

        results = [thread.result() for thread in [InThread(race, store) for store in stores]]
        assert sorted(results) == [False, False, False, True]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00", b"\x01", b"\x02" * 17, b"\x037", b"7", bytes(range(256)), b"x" * (1 << 20)],
    ids=["empty", "nul", "put", "stamp", "counter", "digit", "all bytes", "1 MiB"],
)
def test_every_value_comes_back_as_it_was(open_store: Open, value: bytes) -> None:
    store = open_store()
    store.put("put", value)
    assert store.create("created", value)
    store.put_many([("many/1", value), ("many/2", b""), ("many/3", value)])
    assert store.get(["put", "created", "many/1", "many/2", "many/3"]) == [value, value, value, b"", value]
    assert store.wait("put", 5.0) == value
    assert store.wait("created", 5.0) == value


def test_a_value_that_is_too_large_is_refused(open_store: Open) -> None:
    with pytest.raises(UsageError, match="1048641 bytes"):
        open_store().put("key", b"x" * ((1 << 20) + 65))


def test_get_keeps_the_order_beyond_etcds_limit_of_operations(open_store: Open) -> None:
    store = open_store()
    assert store.get([]) == []
    store.put_many([])
    present = {f"key/{number}": b"%d" % number for number in range(500) if number % 97}
    store.put_many(list(present.items()))
    asked = [f"key/{number}" for number in range(549, -1, -1)]
    assert store.get(asked) == [present.get(key) for key in asked]
    assert store.get(["key/1", "key/1"]) == [b"1", b"1"]
    store.put_many([("twice", b"first"), ("twice", b"last")])
    assert store.get(["twice"]) == [b"last"]


def test_many_large_values_are_split_over_requests(open_store: Open) -> None:
    store = open_store()
    items = [(f"large/{number}", bytes([number]) * 400_000) for number in range(8)]
    store.put_many(items)
    assert store.get([key for key, _ in items]) == [value for _, value in items]


def test_counters_are_exact_under_contention(open_store: Open) -> None:
    stores = [open_store() for _ in range(4)]

    def count(store: Any) -> list[int]:
        return [store.add("count", 1) for _ in range(50)]

    counts = [thread.result() for thread in [InThread(count, store) for store in stores]]
    assert sorted(number for numbers in counts for number in numbers) == list(range(1, 201))
    assert all(numbers == sorted(numbers) for numbers in counts)


def test_counters_take_any_amount(open_store: Open) -> None:
    first, second = open_store(), open_store()
    assert first.add("count", 0) == 0
    assert first.get(["count"]) == [None]
    assert [first.add("count", 5), second.add("count", 1), first.add("count", -7), second.add("count", 1)] == [
        5,
        6,
        -1,
        0,
    ]
    assert second.add("count", 0) == 0
    assert second.get(["count"]) == [b"0"]
    assert first.wait("count", 5.0) == b"0"
    assert first.add("count", 1 << 53) == 1 << 53
    with pytest.raises(UsageError, match="larger than a counter can hold"):
        first.add("count", (1 << 53) + 1)


def test_amounts_other_than_one_are_exact_under_contention(open_store: Open) -> None:
    stores = [open_store() for _ in range(3)]
    threads = [InThread(lambda store=store: [store.add("count", 3) for _ in range(10)]) for store in stores]
    assert sorted(number for thread in threads for number in thread.result()) == list(range(3, 93, 3))


def test_delete_removes_a_prefix_and_nothing_else(open_store: Open) -> None:
    store, other = open_store(), open_store()
    store.put_many([("1/a", b"a"), ("1/b", b"b"), ("10/a", b"c"), ("2/1/a", b"d")])
    other.add("1/c", 1)
    store.delete("1/")
    assert store.get(["1/a", "1/b", "1/c", "10/a", "2/1/a"]) == [None, None, None, b"c", b"d"]
    assert store.create("1/a", b"again")
    assert store.add("1/c", 1) == 1
    store.delete("")
    assert other.get(["1/a", "10/a"]) == [None, None]


def test_jobs_and_prefixes_do_not_see_each_other(open_store: Open, run_id: str) -> None:
    names = [run_id, f"{run_id}/b", f"{run_id}%2Fb", f"{run_id} \u00e4"]
    stores = [open_store(run_id=name) for name in names] + [open_store(run_id=run_id, prefix="/other/place/")]
    for number, store in enumerate(stores):
        assert store.create("b/key", b"%d" % number)
        assert store.create("key", b"%d" % number)
    stores[0].delete("")
    for number, store in enumerate(stores[1:], 1):
        assert store.get(["b/key", "key"]) == [b"%d" % number] * 2


# --- waiting --------------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_what_is_there(open_store: Open) -> None:
    store = open_store()
    store.put("key", b"value")
    assert store.wait("key", 0.0) == b"value"
    assert store.wait("key", 3600.0) == b"value"
    assert store.wait("absent", 0.0) is None


def test_wait_wakes_when_another_writes(open_store: Open) -> None:
    store, other = open_store(), open_store()
    for key in ("one", "two"):
        waiting = InThread(store.wait, key, 3600.0)
        # Both threads use the store at once.
        assert store.add("ticket", 1) > 0
        assert other.create(key, b"")
        assert waiting.result() == b""
    waiting = InThread(store.wait, "counter", 3600.0)
    other.add("counter", 1)
    assert waiting.result() == b"1"


def test_no_write_falls_between_reading_and_watching(open_store: Open) -> None:
    store, other = open_store(), open_store()
    for number in range(30):
        waiting = InThread(store.wait, f"key/{number}", 3600.0)
        other.put(f"key/{number}", b"value")
        assert waiting.result() == b"value"


def test_wait_ends_at_its_deadline(open_store: Open) -> None:
    store = open_store()
    for _ in range(3):
        started = monotonic()
        assert store.wait("absent", 0.2) is None
        assert monotonic() - started >= 0.2
    store.put("absent", b"here")
    assert store.wait("absent", 60.0) == b"here"


def test_interrupt_ends_a_wait_and_the_next_one_works(open_store: Open) -> None:
    store = open_store()
    for _ in range(3):
        waiting = InThread(store.wait, "absent", 3600.0)
        store.interrupt()
        assert waiting.result() is None
    store.put("present", b"1")
    assert store.wait("present", 60.0) == b"1"


def test_an_interrupt_before_the_wait_is_not_lost(open_store: Open) -> None:
    store = open_store()
    store.interrupt()
    assert store.wait("absent", 3600.0) is None
    store.put("present", b"1")
    assert store.wait("present", 60.0) == b"1"


def test_a_removed_key_does_not_wake_anybody(open_store: Open) -> None:
    store, other = open_store(), open_store()
    other.put("key", b"old")
    other.delete("key")
    waiting = InThread(store.wait, "key", 3600.0)
    other.delete("")
    other.put("key", b"new")
    assert waiting.result() == b"new"


def test_closing_ends_a_wait(open_store: Open) -> None:
    store = open_store()
    waiting = InThread(store.wait, "absent", 3600.0)
    store.close()
    assert waiting.result() is None
    store.close()
    with pytest.raises(StoreLostError, match="closed"):
        store.get(["key"])


# --- answers that were lost -------------------------------------------------------------------------------------------


class _LosesAnswers:
    """Stands between the store and etcd: carries requests out, and loses the answer of the first."""

    def __init__(self, store: Any) -> None:
        self._real, self._calls = store._client._connect().calls["Txn"], 0
        store._client._connect().calls["Txn"] = self

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        answer = self._real(*arguments, **more)
        self._calls += 1
        if self._calls == 1:
            raise CallError("UNAVAILABLE", "the connection broke")
        return answer


def test_what_is_sent_twice_is_applied_once(open_store: Open) -> None:
    store, other = open_store(), open_store()
    _LosesAnswers(store)
    assert store.create("key", b"value")
    _LosesAnswers(store)
    assert not other.create("key", b"value")
    assert [store.add("count", 1), other.add("count", 1), store.add("count", 1)] == [1, 2, 3]
    _LosesAnswers(store)
    assert [store.add("count", 5), other.add("count", 0)] == [8, 8]


class _AnswersTooLate:
    """Carries requests out, and has no answer before the deadline."""

    def __init__(self, store: Any) -> None:
        self._transport, self._real = store._client, store._client.call
        self._transport.call = self

    def __call__(self, method: str, request: Any, deadline: float) -> Any:
        self._real(method, request, deadline)
        self._transport.call = self._real
        raise StoreUnavailableError("no answer in time")


def test_the_same_call_again_tells_the_truth_about_the_first(open_store: Open) -> None:
    store, other = open_store(), open_store()
    _AnswersTooLate(store)
    with pytest.raises(StoreUnavailableError):
        store.create("key", b"value")
    assert store.create("key", b"value")
    assert not store.create("key", b"value")
    _AnswersTooLate(store)
    with pytest.raises(StoreUnavailableError):
        store.add("count", 1)
    assert [other.add("count", 1), store.add("count", 1), store.add("count", 1)] == [2, 1, 3]


def test_a_count_that_etcd_has_forgotten_is_counted_again(
    start_etcd: Callable[..., EtcdServer], open_store: Open, admin: Callable[..., Admin]
) -> None:
    """A number that nobody else has matters more than one without a gap."""
    server = start_etcd()
    store, other = (open_store(endpoint=server.get_endpoint()) for _ in range(2))
    _AnswersTooLate(store)
    with pytest.raises(StoreUnavailableError):
        store.add("count", 1)
    assert other.add("count", 1) == 2
    admin(server).compact()
    assert store.add("count", 1) == 3


# --- garbage ----------------------------------------------------------------------------------------------------------


def test_garbage_under_the_prefix_is_named(
    open_store: Open, shared_etcd: EtcdServer, admin: Callable[..., Admin], run_id: str
) -> None:
    """Garbage or hostile bytes in the store."""
    store, root = open_store(), admin(shared_etcd)
    (job,) = (key for key in root.stored(f"quorate/{run_id}/") if key.endswith("/job"))
    place = store._membership.keys.decode()
    for number, value in enumerate((b"", b"text", b"\x80\x04N.", b"\x02short")):
        root.put(f"{place}garbage/{number}", value)
        with pytest.raises(StoreCorruptError, match=rf"'garbage/{number}'.*cannot be used"):
            store.get([f"garbage/{number}"])
        with pytest.raises(StoreCorruptError):
            store.wait(f"garbage/{number}", 5.0)
    root.put(f"{place}count", b"many")
    for amount in (0, 1, 2):
        with pytest.raises(StoreCorruptError, match="it is not a counter"):
            store.add("count", amount)
    for value in (b"", b"\xff", b"1 a b c d", b"1 a", b"99 of the future"):
        root.put(job, value)
        with pytest.raises(StoreCorruptError, match=r"job.*cannot be used"):
            open_store()
