"""What a store holds is not believed: counters, records and answers beyond what any job writes end this node by name.

Everything here runs on the real handler with its threads.  What does not live here: single records (``test_wire``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from attrs import evolve

from quorate import PluginHost
from quorate.errors import RendezvousError, RendezvousStateError
from quorate.records import Assignment, Cause, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import (
    InMemoryStore,
    RendezvousBackend,
    RendezvousInfo,
    RendezvousParameters,
    Store,
    StoreRendezvousHandler,
)
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState, Liveness
from quorate.rendezvous._wire import encode, encode_object

NODE = NodeRecord("me", "trainer", 2)
ASSIGNMENT = Assignment(0, "me", "trainer", 2, 0, 1, 0, 2, 0, 2, "127.0.0.1", 29_000)
SEAL = {"sealer": 7, "nodes": 1, "world_size": 2, "min_nodes": 1, "max_nodes": 4, "restart_count": 0}
RESTART = RoundEnd(0, Cause.EXCEPTION, Verdict.RESTART, "again")

Join = Callable[..., RendezvousInfo]


@pytest.fixture
def join() -> Iterator[Join]:
    handlers: list[StoreRendezvousHandler] = []

    def join(store: Store, **settings: Any) -> RendezvousInfo:
        backend = RendezvousBackend("memory", "in memory", open_store=lambda parameters: store)
        parameters = RendezvousParameters(
            "memory", "", "job", 1, 4, "127.0.0.1", **{"last_call_timeout": 0.0, "join_timeout": 20.0, **settings}
        )
        handler = StoreRendezvousHandler(parameters, backend, PluginHost(paths=[], disabled=()))
        handlers.append(handler)
        handler.prepare(NODE)
        return handler.next_rendezvous()

    yield join
    for handler in handlers:
        handler.shutdown()


def test_an_honest_store_gives_a_round(join: Join) -> None:
    assert join(InMemoryStore()).world_size == 1


# --- counters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [10**9, 2**63, 2**200, -(10**9)])
def test_a_ticket_counter_beyond_any_round_is_refused(join: Join, amount: int) -> None:
    store = InMemoryStore()
    store.add("0/tickets", amount)
    with pytest.raises(RendezvousStateError, match="0/tickets"):
        join(store)


def test_a_ticket_counter_that_is_raised_while_nodes_gather_is_refused(join: Join) -> None:
    class Raised(_Changed):
        def add(self, key: str, amount: int) -> int:
            return self.store.add(key, amount) + (10**9 if amount == 0 and key == "0/tickets" else 0)

    with pytest.raises(RendezvousStateError, match="0/tickets"):
        join(Raised())


@pytest.mark.parametrize("hint", [-1, 2**63, 2**200])
def test_a_round_counter_that_is_not_one_is_refused(join: Join, hint: int) -> None:
    store = InMemoryStore()
    store.add("round", hint)
    with pytest.raises(RendezvousStateError, match="round"):
        join(store)


@pytest.mark.parametrize("rounds", [0, 1, 3, 100])
@pytest.mark.parametrize("hint", [2**40, 2**63 - 1, 101, 3, 1])
def test_the_round_is_found_however_wrong_the_hint_is(join: Join, rounds: int, hint: int) -> None:
    store = _Counting()
    for number in range(rounds):
        store.create(f"{number}/sealed", encode_object("sealed", SEAL))
        store.create(f"{number}/ended", encode(evolve(RESTART, round_number=number)))
    store.add("round", hint)
    info = join(store, lease_timeout=0.2)
    assert info.assignment is not None
    assert info.assignment.round_number == rounds
    assert store.reads <= 220


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 10**9, "world_size": 10**9, "max_nodes": 10**9},
        {"world_size": 10**12},
        {"nodes": 0},
        {"nodes": 3, "max_nodes": 2},
        {"min_nodes": True},
        {"restart_count": -1},
        {"sealer": 10**9},
        {"sealer": -1},
        {"sealer": True},
        {"first_ticket": -1},
        {"first_ticket": "1"},
    ],
)
def test_a_seal_that_no_sealer_writes_is_refused(join: Join, change: dict[str, Any]) -> None:
    store = InMemoryStore()
    store.create("0/sealed", encode_object("sealed", {**SEAL, **change}))
    store.create("0/assignment/7/1", encode(ASSIGNMENT))
    with pytest.raises(RendezvousStateError, match="0/sealed"):
        join(store)


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": "a stranger"},
        {"role": "reader"},
        {"local_world_size": 40},
        {"round_number": 1},
        {"group_world_size": 2},
        {"group_world_size": 10**9},
        {"world_size": 3},
        {"group_rank": 1},
        {"group_rank": -1},
        {"first_rank": 1},
        {"first_role_rank": 5},
        {"role_world_size": 10**9},
        {"restart_count": 1},
        {"master_port": 70_000},
        {"master_addr": "127.0.0.1 --evil\n"},
    ],
)
def test_an_assignment_that_is_not_this_nodes_is_refused(join: Join, change: dict[str, Any]) -> None:
    store = InMemoryStore()
    store.create("0/sealed", encode_object("sealed", SEAL))
    fields = {name: value for name, value in json.loads(encode(ASSIGNMENT)).items() if name not in ("v", "kind")}
    store.create("0/assignment/7/1", encode_object("assignment", {**fields, **change}))
    with pytest.raises(RendezvousStateError, match="0/assignment/7/1"):
        join(store)


def test_a_round_with_more_nodes_than_this_node_allows_is_refused(join: Join) -> None:
    store = InMemoryStore()
    seal = {**SEAL, "nodes": 5, "world_size": 10, "max_nodes": 8}
    store.create("0/sealed", encode_object("sealed", seal))
    assignment = evolve(ASSIGNMENT, group_world_size=5, world_size=10, role_world_size=10)
    store.create("0/assignment/7/1", encode(assignment))
    with pytest.raises(RendezvousStateError, match="5 nodes, and this node allows 4"):
        join(store)


@pytest.mark.parametrize(
    "text",
    [
        '"delay_seconds":Infinity',
        '"delay_seconds":NaN',
        '"delay_seconds":1e999',
        '"delay_seconds":-1',
        '"delay_seconds":86401',
        '"delay_seconds":' + "9" * 400,
        '"delay_seconds":' + "9" * 5000,
        '"restart_count":-1',
        '"restart_count":' + "9" * 400,
        '"lost_ranks":[-1]',
        '"lost_ranks":[1000000000]',
        '"rank":1e400',
        '"failure":{"rank":0,"local_rank":0,"pid":1,"exit_code":1,"cause":"exception","message":"","timestamp_ns":'
        + "9" * 30
        + "}",
        '"new":' + "[" * 600 + "]" * 600,
        '"new":' + '{"a":' * 100 + "1" + "}" * 100,
    ],
)
def test_an_end_that_no_node_writes_is_refused(join: Join, text: str) -> None:
    store = InMemoryStore()
    store.create("0/sealed", encode_object("sealed", SEAL))
    head = '{"v":1,"kind":"end","round_number":0,"cause":"exception","verdict":"restart","reason":"",'
    store.create("0/ended", (head + text + "}").encode())
    store.add("round", 1)
    with pytest.raises(RendezvousStateError, match="0/ended"):
        join(store)


# --- heartbeats -------------------------------------------------------------------------------------------------------


def _beat(count: int, state: HeartbeatState = HeartbeatState.RUNNING) -> bytes:
    return Heartbeat(count, state, "host").encode()


@pytest.mark.parametrize("replayed", [_beat(4), _beat(1), b"", b"garbage", b"9" * 40 + b" run", None])
def test_only_a_higher_heartbeat_is_a_sign_of_life(replayed: bytes | None) -> None:
    liveness = Liveness()
    for time, value in ((0.0, _beat(5)), (1.0, replayed), (2.0, _beat(5)), (3.0, replayed), (4.0, _beat(4))):
        liveness = liveness.after_reading({"key": value}, time, 1.0)
        assert liveness.silent_for("key") == time
    liveness = liveness.after_reading({"key": _beat(6)}, 5.0, 1.0)
    assert liveness.silent_for("key") == 0.0


def test_an_older_heartbeat_does_not_undo_that_a_node_has_left() -> None:
    liveness = Liveness().after_reading({"key": _beat(5, HeartbeatState.LEFT)}, 0.0, 1.0)
    liveness = liveness.after_reading({"key": _beat(4)}, 1.0, 1.0)
    assert liveness.has_left("key")


# --- stores that break their contract ---------------------------------------------------------------------------------


class _Changed:
    """A store of which tests change some answers."""

    def __init__(self) -> None:
        self.store = InMemoryStore()

    def create(self, key: str, value: bytes) -> Any:
        return self.store.create(key, value)

    def put(self, key: str, value: bytes) -> Any:
        return self.store.put(key, value)

    def add(self, key: str, amount: int) -> Any:
        return self.store.add(key, amount)

    def get(self, keys: Sequence[str]) -> Any:
        return self.store.get(keys)

    def wait(self, key: str, timeout: float) -> Any:
        return self.store.wait(key, timeout)

    def delete(self, prefix: str) -> None:
        self.store.delete(prefix)

    def close(self) -> None:
        self.store.close()


class _Counting(_Changed):
    reads = 0

    def get(self, keys: Sequence[str]) -> Any:
        self.reads += 1
        return super().get(keys)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("add", "1"),
        ("add", 1.0),
        ("add", True),
        ("add", None),
        ("create", None),
        ("create", 1),
        ("get", "text"),
        ("get", []),
        ("get", None),
        ("get", ["text"] * 50),
        ("get", [1]),
        ("wait", "text"),
        ("wait", True),
    ],
)
def test_an_answer_of_the_wrong_type_is_reported_by_the_stores_name(join: Join, method: str, answer: object) -> None:
    store = type("OddStore", (_Changed,), {method: lambda self, *arguments: answer})()
    with pytest.raises(RendezvousStateError, match=f"OddStore broke its contract: {method} answered"):
        join(store)


class _Odd(BaseException):
    pass


@pytest.mark.parametrize("method", ["add", "create", "get", "put", "wait"])
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), _Odd("odd"), RecursionError(), MemoryError("no")]
)
def test_whatever_a_store_raises_ends_the_rendezvous_with_a_sentence(
    join: Join, method: str, error: BaseException
) -> None:
    def fail(self: object, *arguments: object) -> None:
        raise error

    with pytest.raises(RendezvousError, match=type(error).__name__):
        join(type("FailingStore", (_Changed,), {method: fail})())


@pytest.mark.parametrize("answer", [None, 5, "store", object(), InMemoryStore])
def test_what_a_backend_opens_is_a_store(join: Join, answer: Any) -> None:
    if answer is InMemoryStore:
        answer = type("HalfAStore", (), {"get": InMemoryStore.get, "close": InMemoryStore.close})()
    with pytest.raises(RendezvousError, match=r"rendezvous backend '\w+' opened .*, which is not a store"):
        join(answer)


@pytest.mark.parametrize("seconds", [3_000_000, 10**10, 1e300, 10**300])
def test_the_longest_timeouts_can_be_waited_for(join: Join, seconds: float) -> None:
    settings = dict.fromkeys(("join_timeout", "operation_timeout", "close_timeout", "store_outage_timeout"), seconds)
    assert join(InMemoryStore(), lease_timeout=0.2, **settings).world_size == 1
