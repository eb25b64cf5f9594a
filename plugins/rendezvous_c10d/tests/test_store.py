"""What the store promises beyond the conformance kit, over a real TCPStore, between real processes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.rendezvous import BatchStore, HostedStore, InterruptibleStore, Store
from quorate.testing import open_descriptors, settles

from .c10d_harness import DEADLINE_SECONDS, Member, tasks


def test_abilities_are_declared(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    assert isinstance(store, Store)
    assert isinstance(store, BatchStore)
    assert isinstance(store, InterruptibleStore)
    assert isinstance(store, HostedStore)
    assert store.is_host


def test_the_first_to_bind_is_the_host(endpoint: str, open_store: Callable[..., Any]) -> None:
    first, second = open_store(endpoint), open_store(endpoint)
    assert (first.is_host, second.is_host) == (True, False)
    first.put("key", b"value")
    assert second.get(["key"]) == [b"value"]


def test_processes_that_race_to_create_have_one_winner(endpoint: str, member: Callable[..., Member]) -> None:
    members = [member(endpoint) for _ in range(4)]
    assert sum(process.opened() for process in members) == 1
    for attempt in range(20):
        for process in members:
            process.send("create", f"race/{attempt}", b"equal bytes")
        outcomes = [process.receive() for process in members]
        assert sorted(outcomes) == [("returned", False)] * 3 + [("returned", True)]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00", b"\x00absent", b"\x01", b"7", bytes(range(256)), b"\x01" * 17, b"x" * (1 << 20)],
    ids=["empty", "nul", "sentinel", "stamp", "digit", "all bytes", "long stamp", "1 MiB"],
)
def test_every_value_comes_back_as_it_was(endpoint: str, open_store: Callable[..., Any], value: bytes) -> None:
    store = open_store(endpoint)
    store.put("put", value)
    assert store.create("created", value)
    store.put_many([("many/1", value), ("many/2", b""), ("many/3", value)])
    names = ["put", "created", "many/1", "many/2", "many/3"]
    assert store.get(names) == [value, value, value, b"", value]
    assert [store.get([name])[0] for name in names] == [value, value, value, b"", value]
    assert store.wait("put", 5.0) == value


def test_a_put_writes_whatever_was_there(endpoint: str, open_store: Callable[..., Any]) -> None:
    """Also where it is not what this handle has put last: forgotten, another's, removed, or never its own."""
    store, other = open_store(endpoint), open_store(endpoint)
    keys = [f"key/{number}" for number in range(30)]
    for value in (b"first", b"second", b""):
        for key in keys:
            store.put(key, value)
        assert other.get(keys) == [value] * len(keys)
    other.put(keys[-1], b"another's")
    store.put(keys[-1], b"mine")
    store.delete(keys[-2])
    store.put(keys[-2], b"mine")
    assert other.create("created", b"once")
    store.put("created", b"mine")
    assert other.get([keys[-1], keys[-2], "created"]) == [b"mine"] * 3


def test_get_keeps_the_order_and_tells_what_is_missing(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    assert store.get([]) == []
    present = {f"key/{number}": b"%d" % number for number in range(1000) if number % 97}
    store.put_many(list(present.items()))
    asked = [f"key/{number}" for number in range(1099, -1, -1)]
    assert store.get(asked) == [present.get(key) for key in asked]
    assert store.get(["key/1", "key/1"]) == [b"1", b"1"]
    # Reading what is not there has not made it.
    assert store.create("key/0", b"now")


def test_counters_are_atomic_between_processes(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    store = open_store(endpoint)
    members = [member(endpoint) for _ in range(2)]
    assert not any(process.opened() for process in members)
    counts = []
    for _ in range(25):
        for process in members:
            process.send("add", "count", 1)
        counts += [process.receive()[1] for process in members]
    assert sorted(counts) == list(range(1, 51))
    assert store.add("count", -50) == 0
    assert store.get(["count"]) == [b"0"]
    assert store.wait("count", 5.0) == b"0"


def test_jobs_on_one_endpoint_do_not_see_each_other(endpoint: str, open_store: Callable[..., Any]) -> None:
    names = ["a", "a/b", "a%2Fb", "\u00e4 b"]
    stores = {name: open_store(endpoint, name) for name in names}
    for name, store in stores.items():
        assert store.create("b/key", name.encode())
        assert store.create("key", name.encode())
    for name, store in stores.items():
        assert store.get(["b/key", "key"]) == [name.encode()] * 2
    stores["a"].delete("")
    assert stores["a"].get(["key"]) == [None]
    assert stores["a/b"].get(["key"]) == [b"a/b"]


# --- waiting --------------------------------------------------------------------------------------------------------


def _in_background(function: Callable[..., Any], *arguments: Any) -> Any:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


def _is_waiting(store: Any) -> bool:
    return bool(store._waiting and store._waiter is not None)


def test_wait_returns_at_once_what_is_there(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    store.put("key", b"value")
    assert store.wait("key", 0.0) == b"value"
    assert store.wait("key", 3600.0) == b"value"
    assert store.wait("absent", 0.0) is None


def test_wait_wakes_when_another_process_writes(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    store = open_store(endpoint)
    other = member(endpoint)
    assert not other.opened()
    for key in ("one", "two"):
        waiting = _in_background(store.wait, key, 3600.0)
        assert settles(lambda: _is_waiting(store))
        # The working connection is free while the other waits.
        assert store.add("ticket", 1) > 0
        assert other.call("create", key, b"") is True
        assert waiting.result(DEADLINE_SECONDS) == b""


def test_wait_ends_at_its_deadline_and_the_connection_stays_good(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    for _ in range(3):
        started = monotonic()
        assert store.wait("absent", 0.2) is None
        assert monotonic() - started >= 0.2
    store.put("absent", b"here")
    assert store.wait("absent", 60.0) == b"here"


def test_interrupt_ends_a_wait_and_the_next_one_works(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    for _ in range(3):
        waiting = _in_background(store.wait, "absent", 3600.0)
        assert settles(lambda: _is_waiting(store))
        store.interrupt()
        assert waiting.result(DEADLINE_SECONDS) is None
    store.put("present", b"1")
    assert store.wait("present", 60.0) == b"1"


def test_an_interrupt_before_the_wait_is_not_lost(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    store.interrupt()
    assert store.wait("absent", 3600.0) is None
    store.put("present", b"1")
    assert store.wait("present", 60.0) == b"1"


def test_without_its_socket_a_wait_can_still_be_interrupted(
    endpoint: str, open_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a default timeout, wrapping torch's descriptor would change it; the store then waits in slices.
    monkeypatch.setattr(socket, "getdefaulttimeout", lambda: 5.0)
    store = open_store(endpoint)
    waiting = _in_background(store.wait, "absent", 3600.0)
    assert settles(lambda: _is_waiting(store))
    assert store._waiter.sock is None
    store.interrupt()
    assert waiting.result(DEADLINE_SECONDS) is None
    waiting = _in_background(store.wait, "key", 3600.0)
    store.put("key", b"value")
    assert waiting.result(DEADLINE_SECONDS) == b"value"


def test_close_ends_a_wait(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    waiting = _in_background(store.wait, "absent", 3600.0)
    assert settles(lambda: _is_waiting(store))
    store.close()
    assert waiting.result(DEADLINE_SECONDS) is None


# --- leaving --------------------------------------------------------------------------------------------------------


def test_close_releases_every_descriptor_and_thread(endpoint: str, open_store: Callable[..., Any]) -> None:
    def cycle() -> None:
        host, client = open_store(endpoint), open_store(endpoint)
        for store in (client, host):
            assert store.wait("absent", 0.01) is None
            store.interrupt()
            assert store.wait("absent", 3600.0) is None
            store.get(["absent"])
            store.close()
            store.close()

    others = set(threading.enumerate())
    cycle()  # torch keeps a few things for the life of the process
    before, threads = open_descriptors(), tasks()
    for _ in range(3):
        cycle()
    assert settles(lambda: tasks() <= threads)
    assert settles(lambda: open_descriptors() <= before)
    assert settles(lambda: set(threading.enumerate()) <= others)


def test_a_lingering_host_stays_until_the_others_have_left(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    host = member(endpoint, linger_timeout=60)
    assert host.opened()
    client = open_store(endpoint)
    killed = member(endpoint)
    assert not killed.opened()
    host.send("close")
    client.put("key", b"value")
    assert client.get(["key"]) == [b"value"]
    killed.kill()  # who dies without a word is not waited for
    assert client.get(["key"]) == [b"value"]
    client.close()
    assert host.receive() == ("returned", None)


def test_lingering_has_a_bound(endpoint: str, open_store: Callable[..., Any]) -> None:
    host, client = open_store(endpoint, linger_timeout=0.2), open_store(endpoint)
    started = monotonic()
    host.close()
    assert monotonic() - started >= 0.2
    client.close()


def test_a_free_port_can_be_chosen(open_store: Callable[..., Any]) -> None:
    host = open_store("localhost:0", max_nodes=1)
    assert host.is_host
    client = open_store(host.endpoint)
    assert client.create("key", b"")
    assert host.get(["key"]) == [b""]
