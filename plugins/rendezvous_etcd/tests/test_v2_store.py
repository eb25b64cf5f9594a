"""The store's promises over etcd's API v2, with a real server, threads and processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorate.errors import StoreCorruptError, StoreLostError, StoreUnavailableError
from quorate.rendezvous import BatchStore, HostedStore, InterruptibleStore, Store
from quorate.testing import answered, settles
from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import DEADLINE_SECONDS
from .v2_harness import LossyProxy, OpenV2, V2Member, in_background, is_waiting, v2, v2_tree


def test_abilities_are_declared(open_v2: OpenV2) -> None:
    store = open_v2()
    assert isinstance(store, Store)
    assert isinstance(store, InterruptibleStore)
    assert not isinstance(store, (BatchStore, HostedStore))


def test_create_writes_once_even_for_equal_bytes(open_v2: OpenV2) -> None:
    first, second = open_v2(), open_v2()
    assert first.create("key", b"same")
    assert not second.create("key", b"same")
    assert not first.create("key", b"same")
    assert second.get(["key"]) == [b"same"]


def test_stores_that_race_to_create_have_one_winner(open_v2: OpenV2) -> None:
    stores = [open_v2() for _ in range(8)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for attempt in range(20):
            key = f"race/{attempt}"
            outcomes = list(pool.map(lambda store, key=key: store.create(key, b"equal bytes"), stores))
            assert sorted(outcomes) == [False] * 7 + [True]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00", b"7", b"v1:a:b", bytes(range(256)), b"x" * (1 << 20), bytes(range(256)) * 4096],
    ids=["empty", "nul", "digit", "like ours", "all bytes", "1 MiB", "1 MiB of all bytes"],
)
def test_every_value_comes_back_as_it_was(open_v2: OpenV2, value: bytes) -> None:
    store = open_v2()
    store.put("many/1", value)
    assert store.create("many/2", value)
    for number in range(3, 6):
        store.put(f"many/{number}", b"%d" % number)
    names = [f"many/{number}" for number in range(1, 6)]
    assert store.get(names) == [value, value, b"3", b"4", b"5"]
    assert [store.get([name])[0] for name in names] == [value, value, b"3", b"4", b"5"]
    assert store.wait("many/1", 5.0) == value


@pytest.mark.parametrize(
    "keys",
    [
        ["a", "a/b", "a/b/c", "a/", "/a", "", "//"],
        ["_hidden", ".", "..", "../x", "x/.", "%41", "A", "a?b#c", "a b", "=a", "~", "a\\b", "\x7f"],
    ],
    ids=["nested", "odd"],
)
def test_any_string_is_a_key_of_its_own(open_v2: OpenV2, keys: list[str]) -> None:
    store = open_v2()
    for number, key in enumerate(keys):
        assert store.create(key, b"%d" % number), key
    expected = [b"%d" % number for number in range(len(keys))]
    assert store.get(keys) == expected
    assert [store.get([key])[0] for key in keys] == expected
    assert [store.wait(key, 5.0) for key in keys] == expected


def test_get_keeps_the_order_and_tells_what_is_missing(open_v2: OpenV2) -> None:
    store = open_v2()
    assert store.get([]) == []
    present = {f"key/{number}": b"%d" % number for number in range(200) if number % 97}
    for key, value in present.items():
        store.put(key, value)
    store.put("key/1/deeper", b"not asked for")
    asked = [f"key/{number}" for number in range(219, -1, -1)]
    assert store.get(asked) == [present.get(key) for key in asked]
    assert store.get(["key/1", "key/1"]) == [b"1", b"1"]
    assert store.get([f"nowhere/{number}" for number in range(10)]) == [None] * 10
    # Reading what is not there has not made it.
    assert store.create("key/0", b"now")


def test_counters_are_exact_under_contention(open_v2: OpenV2) -> None:
    stores = [open_v2() for _ in range(12)]

    def count(store: Any) -> list[int]:
        return [store.add("count", 1) for _ in range(10)]

    with ThreadPoolExecutor(len(stores)) as pool:
        counts = [number for each in pool.map(count, stores) for number in each]
    assert sorted(counts) == list(range(1, 121))
    assert stores[0].add("count", -120) == 0
    assert stores[1].add("count", 0) == 0
    assert stores[0].get(["count"]) == [b"0"]
    assert stores[0].wait("count", 5.0) == b"0"


def test_counters_are_exact_between_processes(open_v2: OpenV2) -> None:
    with V2Member(open_v2.endpoint, open_v2.run_id) as one, V2Member(open_v2.endpoint, open_v2.run_id) as two:
        assert one.receive() == two.receive() == ("open", None)
        counts = []
        for _ in range(15):
            one.send("add", "count", 1)
            two.send("add", "count", 1)
            counts += [one.receive()[1], two.receive()[1]]
        assert sorted(counts) == list(range(1, 31))


def test_asking_a_counter_does_not_make_it(open_v2: OpenV2) -> None:
    store = open_v2()
    assert store.add("count", 0) == 0
    assert store.get(["count"]) == [None]


def test_a_value_is_not_a_counter(open_v2: OpenV2) -> None:
    store = open_v2()
    store.put("key", b"7")
    with pytest.raises(StoreCorruptError, match="not a counter"):
        store.add("key", 1)


def test_put_is_seen_by_others_and_the_last_one_wins(open_v2: OpenV2) -> None:
    first, second = open_v2(), open_v2()
    first.put("key", b"1")
    second.put("key", b"2")
    assert first.get(["key"]) == second.get(["key"]) == [b"2"]


def test_delete_removes_a_prefix_and_nothing_else(open_v2: OpenV2) -> None:
    store = open_v2()
    keys = ["1", "1/a", "1/b/c", "10/a", "2/1/a", "abc", "abd", "ab/x"]
    for key in keys:
        store.put(key, key.encode())
    store.delete("1/")
    assert store.get(keys) == [b"1", None, None, b"10/a", b"2/1/a", b"abc", b"abd", b"ab/x"]
    store.delete("ab")
    store.delete("nothing/begins/with/this")
    assert store.get(keys) == [b"1", None, None, b"10/a", b"2/1/a", None, None, None]
    assert store.create("1/a", b"again")
    store.delete("")
    assert store.get(keys) == [None] * len(keys)
    assert store.create("1/a", b"and again")


def test_jobs_on_one_etcd_do_not_see_each_other(open_v2: OpenV2) -> None:
    names = ["a", "a/b", "a%2Fb", "\u00e4 b", "_a", ".."]
    stores = {name: open_v2(name) for name in names}
    for name, store in stores.items():
        assert store.create("b/key", name.encode())
    for name, store in stores.items():
        assert store.get(["b/key"]) == [name.encode()]
    stores["a"].delete("")
    assert stores["a/b"].get(["b/key"]) == [b"a/b"]
    assert open_v2("a", prefix="elsewhere").get(["b/key"]) == [None]


# --- waiting --------------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_what_is_there(open_v2: OpenV2) -> None:
    store = open_v2()
    store.put("key", b"value")
    assert store.wait("key", 0.0) == b"value"
    assert store.wait("key", 3600.0) == b"value"
    assert store.wait("absent", 0.0) is None
    assert store.wait("absent", 0.05) is None


def test_wait_wakes_when_another_process_writes(open_v2: OpenV2) -> None:
    store = open_v2()
    with V2Member(open_v2.endpoint, open_v2.run_id) as member:
        assert member.receive() == ("open", None)
        waiting = in_background(store.wait, "3/sealed", 3600.0)
        assert settles(lambda: is_waiting(store))
        assert member.call("create", "3/sealed", b"value")
        assert waiting.result(DEADLINE_SECONDS) == b"value"


def test_no_wake_up_is_lost_however_close_write_and_wait_are(open_v2: OpenV2) -> None:
    """Two stores hand a key to and fro; a single lost one would end in the time-out."""
    one, other = open_v2(), open_v2()

    def play(store: Any, mine: str, theirs: str) -> int:
        for number in range(100):
            store.create(f"{mine}/{number}", b"x")
            if store.wait(f"{theirs}/{number}", DEADLINE_SECONDS) is None:
                return number
        return 100

    playing = in_background(play, other, "b", "a")
    assert play(one, "a", "b") == 100
    assert playing.result(DEADLINE_SECONDS) == 100


def test_a_wait_that_missed_more_than_etcd_remembers_looks_again(open_v2: OpenV2) -> None:
    """etcd keeps the last 1000 changes; who asks for an older one is told so, and not made to wait."""
    store = open_v2()
    store.put("key", b"0")
    path = store._path("key")
    index = store._client.get(path, float("inf")).index
    for number in range(1100):
        store._client.put(path, float("inf"), value=number)
    assert store._wait_client.poll(path, index, 3600.0) is None


def test_a_wait_goes_on_while_its_key_is_deleted(open_v2: OpenV2) -> None:
    store, other = open_v2(), open_v2()
    waiting = in_background(store.wait, "1/key", 3600.0)
    assert settles(lambda: is_waiting(store))
    other.put("1/other", b"x")
    other.delete("1/")
    other.delete("")
    assert not waiting.done()
    other.put("1/key", b"value")
    assert waiting.result(DEADLINE_SECONDS) == b"value"


def test_interrupt_ends_a_wait_and_only_that(open_v2: OpenV2) -> None:
    store, other = open_v2(), open_v2()
    for number in range(5):
        waiting = in_background(store.wait, f"key/{number}", 3600.0)
        assert settles(lambda: is_waiting(store))
        store.interrupt()
        assert waiting.result(DEADLINE_SECONDS) is None
        waiting = in_background(store.wait, f"key/{number}", 3600.0)
        assert settles(lambda: is_waiting(store))
        other.put(f"key/{number}", b"value")
        assert waiting.result(DEADLINE_SECONDS) == b"value"


def test_an_interrupt_before_the_wait_is_not_lost(open_v2: OpenV2) -> None:
    store = open_v2()
    store.interrupt()
    assert store.wait("absent", 3600.0) is None
    store.put("key", b"value")
    assert store.wait("key", 3600.0) == b"value"


def test_interrupts_at_any_moment_end_the_wait(open_v2: OpenV2) -> None:
    store = open_v2()
    for _ in range(50):
        waiting = in_background(store.wait, "absent", 3600.0)
        store.interrupt()
        assert waiting.result(DEADLINE_SECONDS) is None


def test_working_and_waiting_do_not_hold_each_other_up(open_v2: OpenV2) -> None:
    store = open_v2()
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))
    assert store.add("count", 1) == 1
    store.put("key", b"value")
    assert waiting.result(DEADLINE_SECONDS) == b"value"


def test_an_idle_wait_sends_nothing(open_v2: OpenV2, shared_v2: EtcdServer) -> None:
    """Nothing is polled: while a wait is under way, etcd serves no reads."""
    store = open_v2()
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))

    def reads() -> int:
        stats = v2(shared_v2.get_endpoint(), "stats/store")
        return int(stats["getsSuccess"]) + int(stats["getsFail"])

    before = reads()
    threading.Event().wait(1.0)
    assert reads() == before
    store.interrupt()
    assert waiting.result(DEADLINE_SECONDS) is None


# --- requests that are sent twice -----------------------------------------------------------------------------------


class _Lose:
    """Picks the requests whose answer gets lost: the next ``count`` that contain all of ``words``."""

    def __init__(self) -> None:
        self.words: tuple[bytes, ...] = ()
        self.count = self.lost = 0

    def next(self, *words: bytes, count: int = 1) -> None:
        self.words, self.count = words, count

    def __call__(self, request: bytes) -> bool:
        if self.count and all(word in request for word in self.words):
            self.count -= 1
            self.lost += 1
            return True
        return False


@pytest.fixture
def lose(open_v2: OpenV2) -> Iterator[_Lose]:
    """Have the fixture ``open_v2`` reach etcd through a proxy that loses answers."""
    lose = _Lose()
    proxy = LossyProxy(open_v2.endpoint, lose)
    open_v2.endpoint = proxy.endpoint
    yield lose
    open_v2.close()
    proxy.close()


def test_a_create_that_was_sent_twice_knows_that_it_won(open_v2: OpenV2, lose: _Lose) -> None:
    store, other = open_v2(), open_v2()
    lose.next(b"PUT", b"=key", count=1)
    assert store.create("key", b"value")
    assert lose.lost == 1
    assert not other.create("key", b"value")
    assert not store.create("key", b"value")


def test_a_create_that_lost_knows_it_although_it_was_sent_twice(open_v2: OpenV2, lose: _Lose) -> None:
    store, other = open_v2(), open_v2()
    assert other.create("key", b"value")
    lose.next(b"PUT", b"=key")
    assert not store.create("key", b"value")
    assert lose.lost == 1


def test_a_create_without_an_answer_can_be_repeated(open_v2: OpenV2, lose: _Lose) -> None:
    store = open_v2(operation_timeout=0.3)
    lose.next(b"=key", count=1000)
    with pytest.raises(StoreUnavailableError):
        store.create("key", b"value")
    lose.next(count=0)
    assert answered(lambda: store.create("key", b"value"))
    assert not answered(lambda: store.create("key", b"value"))


def test_a_count_that_was_sent_twice_is_added_once(open_v2: OpenV2, lose: _Lose) -> None:
    store, other = open_v2(), open_v2()
    for number in range(1, 6):
        lose.next(b"POST", b"=count")
        assert store.add("count", 1) == 2 * number - 1
        assert other.add("count", 1) == 2 * number
    assert lose.lost == 5


def test_a_count_without_an_answer_can_be_repeated(open_v2: OpenV2, lose: _Lose) -> None:
    store, other = open_v2(operation_timeout=0.3), open_v2()
    lose.next(b"=count", count=1000)
    with pytest.raises(StoreUnavailableError):
        store.add("count", 1)
    lose.next(count=0)
    assert other.add("count", 1) == 2
    assert [answered(lambda: store.add("count", 1)) for _ in range(2)] == [1, 3]


def test_lost_answers_do_not_spoil_a_contended_counter(open_v2: OpenV2, lose: _Lose) -> None:
    stores = [open_v2() for _ in range(4)]
    lose.next(b"POST", b"=count", count=20)

    def count(store: Any) -> list[int]:
        return [store.add("count", 1) for _ in range(10)]

    with ThreadPoolExecutor(len(stores)) as pool:
        counts = [number for each in pool.map(count, stores) for number in each]
    assert lose.lost == 20
    assert sorted(counts) == list(range(1, 41))


def test_a_wait_survives_lost_connections(open_v2: OpenV2, lose: _Lose) -> None:
    store, other = open_v2(), open_v2()
    lose.next(b"GET", b"=key", count=3)
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: lose.lost == 3)
    assert settles(lambda: is_waiting(store))
    other.put("key", b"value")
    assert waiting.result(DEADLINE_SECONDS) == b"value"


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_closed_store_refuses_and_close_may_be_repeated(open_v2: OpenV2) -> None:
    store = open_v2()
    store.close()
    store.close()
    for call in (lambda: store.get(["key"]), lambda: store.wait("key", 1.0), lambda: store.create("key", b"")):
        with pytest.raises(StoreLostError, match="closed"):
            call()


def test_close_ends_a_wait_under_way(open_v2: OpenV2) -> None:
    store = open_v2()
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))
    store.close()
    with pytest.raises(StoreLostError, match="closed"):
        waiting.result(DEADLINE_SECONDS)


def test_nothing_is_left_in_etcd_after_the_last_member(open_v2: OpenV2, shared_v2: EtcdServer) -> None:
    endpoint = shared_v2.get_endpoint()
    first, second = open_v2(prefix="of/its/own"), open_v2(prefix="of/its/own")
    for number in range(10):
        first.put(f"1/node/{number}", b"x" * 1000)
    first.close()
    assert second.get(["1/node/3"]) == [b"x" * 1000]
    assert v2_tree(endpoint, "of")
    second.close()
    assert v2(endpoint, "keys/of")["errorCode"] == 100
