"""What is read from etcd is checked: an impossible answer is one error with a sentence.  No thread ends in silence."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreCorruptError, StoreLostError, StoreUnavailableError, UsageError
from quorate.net import parse_endpoint
from quorate.rendezvous import RendezvousParameters
from quorate.testing import answered, settles
from quorate_rendezvous_etcd import EtcdServer
from quorate_rendezvous_etcd._hosted.peers import read_members
from quorate_rendezvous_etcd._keeper import LeaseKeeper
from quorate_rendezvous_etcd._limits import LARGEST_VALUE_BYTES
from quorate_rendezvous_etcd._settings import Settings
from quorate_rendezvous_etcd._v2.transport import Sockets, close_etcd_client, load_etcd, make_etcd_client, make_timeout
from quorate_rendezvous_etcd._v3.messages import load_messages

from .etcd_harness import DEADLINE_SECONDS, Admin, InThread
from .hostile import HostileMember, HostileV2Member
from .v2_harness import OpenV2, in_background, is_waiting, v2

Open = Callable[..., Any]
MESSAGES = load_messages()
LARGE = "9" * 5000  # more digits than Python converts


@pytest.fixture
def member(nothing_left: None, shared_etcd: EtcdServer) -> Iterator[HostileMember]:
    """A hostile member before the shared etcd; it forwards everything until its ``twist`` is set."""
    made = HostileMember(shared_etcd.get_endpoint())
    yield made
    made.close()


@pytest.fixture
def v2_member(nothing_left: None, shared_v2: EtcdServer) -> Iterator[HostileV2Member]:
    """The same for API v2."""
    made = HostileV2Member(shared_v2.get_endpoint())
    yield made
    made.close()


def changed(change: Callable[[Any], object]) -> Callable[[str, bytes], bytes]:
    """Return a twist that changes the answers to transactions."""

    def twist(method: str, answer: bytes) -> bytes:
        if method != "Txn":
            return answer
        message = MESSAGES.TxnResponse.FromString(answer)
        change(message)
        return bytes(message.SerializeToString())

    return twist


def _add_record(message: Any) -> None:
    record = message.responses[0].response_range.kvs.add()
    record.key = b"elsewhere"


def _clear(message: Any) -> None:
    del message.responses[:]


def _make_put(message: Any) -> None:
    message.responses[0].Clear()
    message.responses[0].response_put.SetInParent()


# --- answers that etcd does not give --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [_clear, _add_record, _make_put], ids=["none", "two records", "another kind"])
def test_an_answer_that_does_not_fit_the_request(member: HostileMember, open_store: Open, change: Any) -> None:
    store = open_store(endpoint=member.endpoint)
    store.put("key", b"value")
    member.twist = changed(change)
    for call in (lambda: store.get(["key"]), lambda: store.add("key", 0), lambda: store.wait("key", 5.0)):
        with pytest.raises(StoreUnavailableError, match="make sure that it is etcd") as caught:
            call()
        assert type(caught.value) is StoreUnavailableError
    member.twist = lambda method, answer: answer
    assert store.get(["key"]) == [b"value"]


@pytest.mark.parametrize("status", [LARGE, "\u0663", "-7", "11", "9", "5"])
def test_every_status_is_one_of_quorates_errors(member: HostileMember, open_store: Open, status: str) -> None:
    store = open_store(endpoint=member.endpoint, operation_timeout=0.5)
    member.twist = lambda method, answer: status
    for call in (lambda: store.get(["key"]), lambda: store.add("count", 1), lambda: store.wait("key", 0.2)):
        with pytest.raises(QuorateError):
            call()
    member.twist = lambda method, answer: answer
    assert answered(lambda: store.get(["key"])) == [None]


@pytest.mark.parametrize("words", ["requested lease not found", "lease already exists", "revision has been compacted"])
def test_a_refusal_in_the_wrong_place_is_an_unavailable_store(
    member: HostileMember, open_store: Open, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    store = open_store(endpoint=member.endpoint, operation_timeout=0.3)
    answer = HostileMember._answer

    def refuse(self: HostileMember, http: Any, stream: int, *more: Any) -> None:
        headers = [(":status", "200"), ("grpc-status", "9"), ("grpc-message", f"etcdserver: {words}")]
        http.send_headers(stream, headers, end_stream=True)

    monkeypatch.setattr(HostileMember, "_answer", refuse)
    calls = (lambda: store.put("key", b""), lambda: store.get(["key"]), lambda: store.delete("key"))
    for call in calls:
        with pytest.raises(StoreUnavailableError):
            call()
    monkeypatch.setattr(HostileMember, "_answer", answer)


def test_a_watch_that_tells_of_another_key_or_nothing_is_not_believed_for_long(
    member: HostileMember, open_store: Open
) -> None:
    """Bytes that are not a message end the watch; the wait goes on with a read."""
    store, other = open_store(endpoint=member.endpoint), open_store()
    member.twist = lambda method, answer: b"\xff\xff" if method == "Watch" else answer
    waiting = InThread(store.wait, "key", 3600.0)
    assert settles(lambda: member.calls.count("Watch") > 1)
    other.put("key", b"value")
    assert waiting.result() == b"value"


# --- values, counts, numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", ["9007199254740993", "-9007199254740994", LARGE, "-" + LARGE, "\u0663", "", "1_0"])
def test_counts_are_bounded(
    open_store: Open, shared_etcd: EtcdServer, admin: Callable[..., Admin], digits: str
) -> None:
    store = open_store()
    admin(shared_etcd).put(f"{store._membership.keys.decode()}count", b"\x03" + digits.encode())
    calls: tuple[Callable[[], Any], ...] = (
        lambda: store.add("count", 0),
        lambda: store.add("count", 2),
        lambda: store.get(["count"]),
        lambda: store.wait("count", 5.0),
    )
    for call in calls:
        with pytest.raises(StoreCorruptError, match=r"its count is larger than|it is not a counter"):
            call()


def test_the_number_of_writes_is_bounded(member: HostileMember, open_store: Open) -> None:
    def change(message: Any) -> None:
        for response in message.responses:
            for record in response.response_range.kvs:
                record.version = (1 << 63) - 1

    store = open_store(endpoint=member.endpoint)
    assert store.add("count", 1) == 1
    member.twist = changed(change)
    with pytest.raises(StoreCorruptError, match="its count is larger than"):
        store.add("count", 1)


def test_values_are_bounded(open_store: Open, shared_etcd: EtcdServer, admin: Callable[..., Admin]) -> None:
    store = open_store()
    store.put("key", b"x" * (1 << 20))
    assert store.get(["key"]) == [b"x" * (1 << 20)]
    admin(shared_etcd).put(f"{store._membership.keys.decode()}key", b"\x01" + b"x" * (LARGEST_VALUE_BYTES + 1))
    for call in (lambda: store.get(["key"]), lambda: store.wait("key", 5.0)):
        with pytest.raises(StoreCorruptError, match=f"the store accepts {LARGEST_VALUE_BYTES}"):
            call()
    for write in (store.put, store.create):
        with pytest.raises(UsageError, match=f"the store accepts {LARGEST_VALUE_BYTES}"):
            write("key", b"x" * (LARGEST_VALUE_BYTES + 1))


@pytest.mark.parametrize(
    "record",
    [
        b"1 token 7fffffffffffffff 1 8",
        b"1 ab ffffffffffffffff 1 8",
        b"1 ab 7 " + LARGE.encode() + b" 8",
        b"1 ab -7 1 8",
        b"1 ab/key 7 1 8",
        b"1 ab 0x7 1 8",
        b"1 ab 1_0 1 8",
        b"1 " + b"a" * 1000 + b" 7 1 8",
        LARGE.encode(),
        b"\xd9\xa3",
    ],
)
def test_the_record_of_the_job_is_checked(
    open_store: Open, shared_etcd: EtcdServer, admin: Callable[..., Admin], run_id: str, record: bytes
) -> None:
    admin(shared_etcd).put(f"quorate/{run_id}/job", record)
    with pytest.raises(StoreCorruptError, match="it was not written by quorate"):
        open_store()


# --- API v2 ---------------------------------------------------------------------------------------------------------

NODE = {"key": "/k", "value": "v", "createdIndex": 1, "modifiedIndex": 1}


def _body(**fields: object) -> bytes:
    return json.dumps({"action": "get", "node": {**NODE, **fields}}).encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"[" * 200_000),
        (200, b'{"node":' * 50_000),
        (200, b'{"node": {"key": "/k", "nodes": [' * 50_000),
        (200, b"null"),
        (200, b"[]"),
        (200, b'{"node": 7}'),
        (200, b'{"node": {"key": 7}}'),
        (200, _body(value=[1])),
        (200, _body(nodes=7)),
        (200, _body(nodes=[7])),
        (200, _body(createdIndex=-1)),
        (200, _body(modifiedIndex="seven")),
        (200, b'{"node": {"key": "/k", "value": "v", "modifiedIndex": 1e999}}'),
        (200, b'{"node": {"key": "/k", "value": "v", "modifiedIndex": ' + LARGE.encode() + b"}}"),
        (200, b'{"node": {"key": "/k", "value": "v", "modifiedIndex": NaN}}'),
        (200, b"\xff\xfe"),
        (404, b"[" * 200_000),
        (404, b"7"),
        (404, b'{"errorCode": [100], "message": "m", "cause": "c", "index": 1}'),
        (404, b'{"errorCode": {"a": 1}, "message": ["m"], "cause": {"c": 1}, "index": 1}'),
        (404, b'{"errorCode": 100, "message": "m", "cause": "c", "index": 1e999}'),
        (404, b'{"errorCode": 100, "message": "m", "cause": "c", "index": ' + LARGE.encode() + b"}"),
        (404, b'{"errorCode": 100, "message": "m", "cause": "c", "index": null}'),
        (404, b"\xff\xfe"),
    ],
)
def test_json_that_etcd_does_not_write(
    v2_member: HostileV2Member, shared_v2: EtcdServer, nothing_left: None, status: int, body: bytes
) -> None:
    opener = OpenV2(v2_member.endpoint, "hostile-json")
    store = opener(operation_timeout=0.3)
    v2_member.twist = lambda path, real_status, real_body: (status, body)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: store.get(["key"]),
        lambda: store.get([f"1/{name}" for name in range(5)]),
        lambda: store.add("count", 1),
        lambda: store.wait("key", 0.2),
    )
    for call in calls:
        with pytest.raises(QuorateError):
            call()
    v2_member.twist = lambda path, real_status, real_body: (real_status, real_body)
    assert answered(lambda: store.get(["key"])) == [None]
    opener.close()


def test_a_v2_answer_that_comes_byte_by_byte_is_given_up_in_time(open_v2: OpenV2, v2_member: HostileV2Member) -> None:
    store = open_v2(endpoint=v2_member.endpoint, operation_timeout=0.3)
    v2_member.twist = lambda path, status, body: (status, b" " * 100_000 + body)
    v2_member.pause_seconds = 0.02
    for call in (partial(store.get, ["key"]), partial(store.put, "key", b""), partial(store.wait, "key", 0.3)):
        with pytest.raises(StoreUnavailableError, match="etcd does not answer"):
            in_background(call).result(DEADLINE_SECONDS)
    v2_member.twist, v2_member.pause_seconds = (lambda path, status, body: (status, body)), 0.0
    answered(lambda: store.put("key", b"value"))
    assert answered(lambda: store.get(["key"])) == [b"value"]


def test_a_list_of_members_that_is_late_is_not_read_on() -> None:
    """However many bytes are there: each read could otherwise find some more, for ever."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000)
        with pytest.raises(TimeoutError):
            read_members(ours, monotonic() - 1.0)
        assert ours.recv(4) == b"HTTP"


def test_a_v2_answer_that_is_packed_is_not_unpacked(v2_member: HostileV2Member) -> None:
    """One MiB becomes a GiB, and each attempt would take the memory and the time."""
    bomb = gzip.compress(bytes(1 << 24)) * 64
    v2_member.twist, v2_member.fields = (lambda path, status, body: (status, bomb)), {"Content-Encoding": "gzip"}
    settings = Settings.from_parameters(RendezvousParameters("etcd-v2", v2_member.endpoint, "job", 1, 1), is_v2=True)
    timeout = make_timeout(DEADLINE_SECONDS, DEADLINE_SECONDS)
    client = make_etcd_client(load_etcd(), settings, parse_endpoint(v2_member.endpoint), Sockets())
    try:
        assert client.http.urlopen("GET", f"http://{v2_member.endpoint}/v2/keys/key", timeout=timeout).data == bomb
    finally:
        close_etcd_client(client)


@pytest.mark.parametrize("amount", ["9007199254740993", "-9007199254740993", LARGE, "\u0663", "1_0"])
def test_v2_counts_are_bounded(open_v2: OpenV2, amount: str) -> None:
    store = open_v2()
    v2(open_v2.endpoint, f"keys{store._path('count')}/7", "PUT", value=f"c1:{amount}:stamp")
    for call in (lambda: store.add("count", 0), lambda: store.add("count", 1), lambda: store.get(["count"])):
        with pytest.raises(StoreCorruptError, match=r"its count is larger than|it is not a counter"):
            call()


def test_v2_values_are_bounded(open_v2: OpenV2, v2_member: HostileV2Member) -> None:
    store = open_v2(endpoint=v2_member.endpoint)
    store.put("key", b"x" * (1 << 20))
    assert store.get(["key"]) == [b"x" * (1 << 20)]
    v2_member.twist = lambda path, status, body: (status, body.replace(b"v1:", b"v1:" + b"x" * 1000))
    for call in (lambda: store.get(["key"]), lambda: store.wait("key", 5.0)):
        with pytest.raises(StoreCorruptError, match=f"larger than the {LARGEST_VALUE_BYTES} bytes"):
            call()
    v2_member.twist = lambda path, status, body: (status, body)
    for write in (store.put, store.create):
        with pytest.raises(UsageError, match=f"the store accepts {LARGEST_VALUE_BYTES}"):
            write("key", b"x" * (LARGEST_VALUE_BYTES + 1))


@pytest.mark.parametrize("bounds", ["99999999999999999999.8", "-1.8", "x.8", "8"])
def test_a_v2_job_with_impossible_bounds_is_not_joined(open_v2: OpenV2, bounds: str) -> None:
    """Its directory has a member, so it is alive."""
    run_id = "impossible"
    v2(open_v2.endpoint, f"keys/quorate/{run_id}/current", "PUT", value=f"token.{bounds}")
    v2(open_v2.endpoint, f"keys/quorate/{run_id}/token.{bounds}/members/one", "PUT", value="")
    with pytest.raises(StoreCorruptError, match="current"):
        open_v2(run_id)
    v2(open_v2.endpoint, f"keys/quorate/{run_id}", "DELETE", recursive="true")


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", ["1e300", "9000000001"])
def test_times_to_live_are_bounded(open_store: Open, ttl: str) -> None:
    """Every time is cut at a year, which etcd grants."""
    store = open_store(key_ttl=ttl)
    assert store.create("key", b"value")


# --- threads --------------------------------------------------------------------------------------------------------


def test_a_keeper_outlives_every_answer_of_a_hostile_member(member: HostileMember, open_store: Open) -> None:
    store = open_store(endpoint=member.endpoint, member_ttl=2, operation_timeout=0.3)
    for twisted in (LARGE, "9", b"\xff"):
        member.calls.clear()
        member.twist = lambda method, answer, twisted=twisted: (  # type: ignore[misc] # it has a default
            twisted if method == "LeaseKeepAlive" else answer
        )
        assert settles(lambda: member.calls.count("LeaseKeepAlive") > 1)
        member.twist = lambda method, answer: answer
        member.calls.clear()
        assert settles(lambda: "LeaseKeepAlive" in member.calls), "the thread goes on"
    assert any(thread.name == "quorate-etcd-lease" for thread in threading.enumerate())
    assert answered(lambda: store.get(["key"])) == [None]


def test_a_keeper_that_fails_ends_the_store(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(member_ttl=2)
    waiting = InThread(store.wait, "key", 3600.0)
    assert settles(lambda: bool(store._client._watching))

    def fail(*arguments: object) -> bool:
        raise ZeroDivisionError("an error that nothing foresees")

    monkeypatch.setattr(type(store._membership._leases), "keep_alive", fail)
    for call in (waiting.result, lambda: store.get(["key"]), lambda: store.put("key", b"")):
        with pytest.raises(StoreLostError, match=r"keeps this node's leases .* ZeroDivisionError|ZeroDivisionError"):
            call()


def test_a_v2_keeper_that_fails_ends_the_store(open_v2: OpenV2, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_v2(member_ttl=2)
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))

    def fail(*arguments: object) -> bool:
        raise ZeroDivisionError("an error that nothing foresees")

    monkeypatch.setattr(type(store._membership._leases), "refresh_entry", fail)
    for call in (lambda: waiting.result(DEADLINE_SECONDS), lambda: store.get(["key"]), lambda: store.put("key", b"")):
        with pytest.raises(StoreLostError, match="ZeroDivisionError"):
            call()


def test_a_wait_that_fails_ends_the_store(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()

    def fail(*arguments: object) -> Any:
        raise ZeroDivisionError("an error that nothing foresees")

    monkeypatch.setattr(store._client, "begin_watch", fail)
    for call in (lambda: store.wait("key", 60.0), lambda: store.get(["key"])):
        with pytest.raises(StoreLostError, match="waiting for 'key' in etcd has failed"):
            call()


def test_a_keeper_stops_renewing_when_the_job_is_lost() -> None:
    calls: list[str] = []

    def renew() -> None:
        calls.append("renew")
        if len(calls) == 1:
            raise StoreUnavailableError("etcd is away")
        raise StoreLostError("the job is gone")

    keeper = LeaseKeeper("keeper", 0.01, renew, calls.append)
    keeper.start()
    keeper.join(DEADLINE_SECONDS)
    assert calls == ["renew", "renew"]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2"])
def test_a_resolver_that_does_not_answer_takes_no_longer_than_the_deadline(
    nothing_left: None, open_store: Open, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """All attempts wait for the one lookup that is under way."""
    answered, asked, real = threading.Event(), [], socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **more: Any) -> Any:
        if host not in (b"no-answer.invalid", "no-answer.invalid"):
            return real(host, *arguments, **more)
        asked.append(threading.current_thread())
        answered.wait(DEADLINE_SECONDS)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    settings: dict[str, Any] = {"connect_timeout": 0.5, "dial_timeout": 0.1, "operation_timeout": 0.3}
    began = monotonic()
    start = open_store if backend == "etcd" else OpenV2("", "job")
    with pytest.raises(StoreUnavailableError, match=r"no-answer\.invalid"):
        start(endpoint="no-answer.invalid", **settings)
    assert monotonic() - began < DEADLINE_SECONDS / 4
    answered.set()
    assert len(asked) == 1
    for thread in asked:
        thread.join(DEADLINE_SECONDS)
