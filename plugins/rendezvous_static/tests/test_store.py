"""What the store promises to everyone who uses it, over real sockets, from many threads and processes at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorate import testing
from quorate.errors import RendezvousStateError, StoreCorruptError, StoreUnavailableError, UsageError
from quorate.rendezvous import BatchStore, InterruptibleStore, Store
from quorate_rendezvous_static import Limits, TcpStore, TcpStoreServer
from quorate_rendezvous_static._wire import LARGEST_VALUE

SHORT = 0.05
LONG = 30.0


def test_it_has_the_abilities_that_it_declares(connect: Any) -> None:
    store = connect()
    for ability in (Store, BatchStore, InterruptibleStore):
        assert isinstance(store, ability)


def test_create_writes_once_even_with_equal_bytes(connect: Any) -> None:
    first, second = connect(), connect()
    assert first.create("key", b"same")
    assert not first.create("key", b"same")
    assert not second.create("key", b"other")
    assert second.get(["key"]) == [b"same"]


def test_put_replaces_and_delete_removes_by_prefix(connect: Any) -> None:
    store = connect()
    store.put("1/a", b"old")
    store.put("1/a", b"new")
    store.put_many([("1/b", b"b"), ("10/c", b"c"), ("1/b", b"last")])
    store.put_many([])
    assert store.get(["1/b", "1/a", "absent", "10/c", "1/a"]) == [b"last", b"new", None, b"c", b"new"]
    assert store.get([]) == []
    store.delete("1/")
    assert store.get(["1/a", "1/b", "10/c"]) == [None, None, b"c"]
    assert store.create("1/a", b"again")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_537, 1 << 20])
def test_values_of_any_bytes_up_to_a_mebibyte(connect: Any, size: int) -> None:
    store, value = connect(), bytes(index % 256 for index in range(size))
    assert store.create("created", value)
    store.put("put", value)
    assert store.get(["created", "put"]) == [value, value]
    assert store.wait("put", LONG) == value


def test_more_than_one_frame_holds_is_written_and_read_in_parts(connect: Any) -> None:
    store = connect()
    pairs = [(f"key/{index}", bytes([index]) * (1 << 20)) for index in range(5)]
    store.put_many(pairs)
    assert store.get([key for key, _ in reversed(pairs)]) == [value for _, value in reversed(pairs)]


def test_ten_thousand_keys_in_one_call(connect: Any) -> None:
    store = connect()
    keys = [f"some/rather/long/key/of/a/node/{'x' * 300}/{index}" for index in range(10_000)]
    store.put_many([(key, b"v") for key in keys])
    assert store.get(keys) == [b"v"] * len(keys)


def test_what_is_too_large_is_the_callers_mistake(connect: Any) -> None:
    store = connect()
    calls: list[Callable[[], Any]] = [
        lambda: store.put("key", bytes(LARGEST_VALUE + 1)),
        lambda: store.create("k" * 4097, b""),
        lambda: store.add("key", 1 << 63),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert store.get(["key"]) == [None]


def test_add_counts_and_refuses_what_is_no_counter(connect: Any) -> None:
    store = connect()
    assert [store.add("n", 2), store.add("n", -5), store.add("n", 0)] == [2, -3, -3]
    assert store.get(["n"]) == [b"-3"]
    for value in (b"text", b"", b"9" * 30):
        store.put("n", value)
        with pytest.raises(StoreCorruptError, match="'n'"):
            store.add("n", 1)
        assert store.get(["n"]) == [value]
    store.put("n", b"7")
    with pytest.raises(StoreCorruptError):
        store.add("n", (1 << 63) - 1)
    assert store.add("n", 1) == 8


@pytest.mark.server(limits=Limits(store_bytes=1000, key_overhead_bytes=0))
def test_a_full_store_says_so_and_keeps_what_it_has(connect: Any) -> None:
    store = connect()
    store.put("a", bytes(900))
    with pytest.raises(StoreUnavailableError, match="takes no more"):
        store.put("b", bytes(200))
    assert store.get(["a", "b"]) == [bytes(900), None]
    store.delete("a")
    store.put("b", bytes(900))


def test_the_example_of_the_readme_does_what_it_says() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    values: dict[str, Any] = {}
    for line in example.splitlines():
        code, _, comment = line.partition("  # ")
        if comment.startswith(("True", "2", "None")):
            assert repr(eval(code, values)) == re.split(r"[; ]", comment)[0]
        else:
            exec(code, values)


# --- waiting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.0, LONG])
def test_wait_finds_what_is_there(connect: Any, timeout: float) -> None:
    store = connect()
    store.put("key", b"value")
    assert store.wait("key", timeout) == b"value"


@pytest.mark.parametrize("timeout", [0.0, SHORT])
def test_wait_gives_up_at_its_deadline_and_not_before(connect: Any, timeout: float) -> None:
    store = connect()
    started = time.monotonic()
    assert store.wait("key", timeout) is None
    assert time.monotonic() - started >= timeout
    store.put("key", b"late")
    assert store.wait("key", 0.0) == b"late"


@pytest.mark.parametrize("write", ["put", "create", "add", "put_many"])
def test_every_kind_of_write_wakes_every_waiter(connect: Any, in_thread: Any, server: Any, write: str) -> None:
    stores = [connect() for _ in range(5)]
    waiters = [in_thread(lambda store=store: store.wait("key", LONG)) for store in stores]
    _until_waiting(server, 5)
    writer = connect()
    writer.put("another key", b"x")
    if write == "add":
        writer.add("key", 1)
    elif write == "put_many":
        writer.put_many([("x", b"x"), ("key", b"1")])
    else:
        getattr(writer, write)("key", b"1")
    assert [waiter.result() for waiter in waiters] == [b"1"] * 5


def test_work_goes_on_while_the_other_connection_waits(connect: Any, in_thread: Any, server: Any) -> None:
    store = connect()
    waiter = in_thread(lambda: store.wait("key", LONG))
    _until_waiting(server, 1)
    assert [store.add("n", 1) for _ in range(100)] == list(range(1, 101))
    store.put("key", b"value")
    assert waiter.result() == b"value"


def test_interrupt_wakes_a_wait_at_once(connect: Any, in_thread: Any, server: Any) -> None:
    store = connect()
    waiter = in_thread(lambda: store.wait("key", LONG))
    _until_waiting(server, 1)
    store.interrupt()
    assert waiter.result() is None
    store.put("key", b"value")
    assert store.wait("key", LONG) == b"value"


def test_interrupts_before_a_wait_end_just_that_one(connect: Any) -> None:
    store = connect()
    for _ in range(3):
        store.interrupt()
    assert store.wait("key", LONG) is None
    store.put("key", b"value")
    assert store.wait("key", LONG) == b"value"


def test_a_wait_that_was_given_up_does_not_answer_the_next_one(connect: Any) -> None:
    store, writer = connect(), connect()
    assert store.wait("first", SHORT) is None
    writer.put("first", b"1")
    writer.put("second", b"2")
    assert store.wait("second", LONG) == b"2"
    assert store.wait("first", LONG) == b"1"


def test_close_wakes_a_wait_and_later_calls_say_that_it_is_closed(connect: Any, in_thread: Any, server: Any) -> None:
    store = connect()
    waiter = in_thread(lambda: store.wait("key", LONG))
    _until_waiting(server, 1)
    store.close()
    assert waiter.result() is None
    store.close()
    calls: list[Callable[[], Any]] = [lambda: store.get(["key"]), lambda: store.wait("key", 1.0)]
    for call in calls:
        with pytest.raises(StoreUnavailableError, match="was closed"):
            call()


# --- many at once ---------------------------------------------------------------------------------------------------

RACER = """
import sys
from quorate_rendezvous_static import TcpStore
store = TcpStore("127.0.0.1", int(sys.argv[1]), "job")
print("ready", flush=True)
store.wait("go", 30)
won = sum(store.create(f"prize/{index}", b"same bytes") for index in range(200))
for _ in range(200):
    store.add("n", 1)
print(won, flush=True)
sys.stdin.read()
store.close()
"""


def test_racing_processes_share_each_prize_once_and_count_exactly(
    connect: Any, start_process: Any, server: TcpStoreServer
) -> None:
    children = [start_process(RACER, server.port) for _ in range(3)]
    for child in children:
        assert child.read_line() == "ready"
    store = connect()
    store.put("go", b"")
    assert sum(int(child.read_line()) for child in children) == 200
    assert store.get(["n"]) == [b"600"]


def test_128_clients_at_once(connect: Any, in_thread: Any) -> None:
    stores = [connect() for _ in range(128)]

    def work(mine: list[TcpStore]) -> list[int]:
        return [store.add("n", 1) for _ in range(5) for store in mine]

    counts = [
        count for part in [in_thread(lambda k=k: work(stores[k::8])) for k in range(8)] for count in part.result()
    ]
    assert sorted(counts) == list(range(1, 641))


def test_threads_may_share_one_client(connect: Any, in_thread: Any) -> None:
    store = connect()
    parts = [in_thread(lambda: [store.add("n", 1) for _ in range(100)]) for _ in range(4)]
    assert sorted(count for part in parts for count in part.result()) == list(range(1, 401))


# --- jobs and versions ----------------------------------------------------------------------------------------------


def test_another_job_is_refused_with_the_remedy(connect: Any) -> None:
    connect().put("key", b"ours")
    with pytest.raises(RendezvousStateError, match=r"another job.*--rdzv-id"):
        connect(run_id="another", connect_timeout=0.2)


def test_two_jobs_on_two_servers_do_not_see_each_other(connect: Any) -> None:
    other = TcpStoreServer("127.0.0.1", 0, "another")
    ours, theirs = connect(), connect(port=other.port, run_id="another", server=other)
    ours.put("key", b"ours")
    assert theirs.get(["key"]) == [None]
    assert theirs.create("key", b"theirs")
    assert ours.get(["key"]) == [b"ours"]


def test_another_version_is_refused_at_once(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate_rendezvous_static._link.PROTOCOL_VERSION", 999)
    with pytest.raises(RendezvousStateError, match="version 3 of the store's protocol, this node 999"):
        connect(connect_timeout=60.0)


# --- the host leaves ------------------------------------------------------------------------------------------------


def test_the_server_stays_until_the_others_have_left(in_thread: Any) -> None:
    server = TcpStoreServer("127.0.0.1", 0, "job", linger_timeout=LONG)
    host, client = (TcpStore("127.0.0.1", server.port, "job", server=own) for own in (server, None))
    closing = in_thread(host.close)
    while server.addresses:  # it takes no new clients once it wants to leave
        assert client.get(["key"]) == [None]
    client.put("last words", b"read")
    assert client.get(["last words"]) == [b"read"]
    assert closing.is_running
    client.close()
    closing.result()


def test_the_server_waits_for_a_client_no_longer_than_its_linger_time() -> None:
    server = TcpStoreServer("127.0.0.1", 0, "job")
    client = TcpStore("127.0.0.1", server.port, "job")
    server.close(SHORT)
    server.close(SHORT)
    with pytest.raises(StoreUnavailableError, match="is gone"):
        client.get(["key"])
    client.close()


def test_a_new_server_may_take_the_port_while_the_old_one_lingers(in_thread: Any) -> None:
    old = TcpStoreServer("127.0.0.1", 0, "job", linger_timeout=LONG)
    client = TcpStore("127.0.0.1", old.port, "job")
    client.put("key", b"old")
    closing = in_thread(old.close)
    while old.addresses:
        client.get(["key"])
    new = TcpStoreServer("127.0.0.1", old.port, "next job")
    assert client.get(["key"]) == [b"old"]
    client.close()
    closing.result()
    new.close()


def _until_waiting(server: TcpStoreServer, count: int) -> None:
    """Return once ``count`` connections wait.  Looks inside, as no client can see what others wait for."""
    assert testing.settles(lambda: sum(len(peers) for peers in list(server._waiters.values())) >= count, LONG)
