"""What the stores in etcd read from its members, over both APIs; found by ``core.tests.fuzz``."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import hpack
from core.tests.fuzz.target import Target, over_a_socket

from quorate.cli._values import settings as parse_settings
from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreCorruptError, UsageError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd._hosted.names import check, parse_names
from quorate_rendezvous_etcd._hosted.peers import read_members
from quorate_rendezvous_etcd._settings import Settings
from quorate_rendezvous_etcd._v2.answers import read_answer
from quorate_rendezvous_etcd._v2.counter import count_at, is_counter, pack_addition
from quorate_rendezvous_etcd._v2.format import Value, pack
from quorate_rendezvous_etcd._v2.job import JobDirectory
from quorate_rendezvous_etcd._v2.store import _value_of
from quorate_rendezvous_etcd._v3.answers import judge
from quorate_rendezvous_etcd._v3.client import _METHODS, _decode
from quorate_rendezvous_etcd._v3.format import count_of, data_of, pack_counter, pack_created, pack_put
from quorate_rendezvous_etcd._v3.http2 import CallError, Http2Connection
from quorate_rendezvous_etcd._v3.job import Incarnation
from quorate_rendezvous_etcd._v3.messages import load_messages

_MESSAGES = sorted({answer for _, answer in _METHODS.values()})
_INCARNATION = Incarnation("ab12", 77, (1, 4))


@cache
def _settings() -> Settings:
    return Settings.from_parameters(RendezvousParameters("etcd", "[::1]:2379", "job", 1, 4))


# --- API v3 -----------------------------------------------------------------------------------------------------------


def _read_record(data: bytes) -> None:
    record = SimpleNamespace(value=data[1:], version=data[0] if data else 0)
    assert len(data_of("key", record)) < 2 << 20
    if data[1:2] == b"\3":
        assert abs(count_of("key", record)) <= 1 << 53


def _read_message(data: bytes) -> None:
    """Read an answer of the kind that the first byte says, and the records in it."""
    kind = _MESSAGES[data[0] % len(_MESSAGES)] if data else "TxnResponse"
    answer = _decode(getattr(load_messages(), kind).FromString, data[1:])
    for response in getattr(answer, "responses", ()):
        for record in response.response_range.kvs:
            data_of("key", record)


def _message(kind: str, **fields: Any) -> bytes:
    return bytes([_MESSAGES.index(kind)]) + getattr(load_messages(), kind)(**fields).SerializeToString()


def _transaction() -> bytes:
    messages = load_messages()
    answer = messages.TxnResponse(succeeded=True)
    answer.responses.add().response_range.kvs.add(key=b"k", value=pack_put(b"v"), version=1)
    return bytes([_MESSAGES.index("TxnResponse")]) + answer.SerializeToString()


def _call(sock: socket.socket) -> None:
    """Make a call whose answer is there already, and tell what a failure means."""
    connection = Http2Connection(sock, "[::1]:2379")
    deadline = monotonic() + 5.0
    try:
        connection.begin("/etcdserverpb.KV/Txn", b"", (), deadline)
        while connection.next_message(deadline) is not None:
            pass
        connection.is_alive()
    except CallError as error:
        if error.code != "DEADLINE_EXCEEDED":
            judge(error.code, error.details, _settings())
        raise


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _answer(status: str, *messages: bytes, details: str = "") -> bytes:
    """Return the bytes of a member that answers a connection's first call."""
    encoder = hpack.Encoder()
    head = encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
    tail = encoder.encode([("grpc-status", status), ("grpc-message", details)])
    body = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    frames = (_frame(4, 0, 0, b""), _frame(1, 4, 1, head), _frame(0, 0, 1, body), _frame(6, 0, 0, bytes(8)))
    return b"".join((*frames, _frame(1, 5, 1, tail)))


# --- API v2 -----------------------------------------------------------------------------------------------------------


def _read_v2(data: bytes) -> None:
    body, _, index = data.partition(b"\0")
    node = read_answer(body, {"X-Etcd-Index": index.decode("utf-8", "replace")}).node
    for each in (node,) if is_counter(node) else (node, *node.children):
        _value_of(each, "path")
    if is_counter(node):
        count_at(node, "stamp")
    JobDirectory.node_limits_of(node.value or "")


def _v2(**node: Any) -> bytes:
    return (
        json.dumps({"action": "get", "node": {"key": "/k", "createdIndex": 3, "modifiedIndex": 4, **node}}).encode()
        + b"\x007"
    )


_ADDITION = {"key": "/k/1", "value": pack_addition(2, "stamp"), "createdIndex": 5, "modifiedIndex": 5}

# --- members and settings ---------------------------------------------------------------------------------------------


def _read_members(sock: socket.socket) -> None:
    read_members(sock, monotonic() + 5.0)


def _read_settings(data: bytes) -> None:
    endpoint, _, conf = data.decode("utf-8", "replace").partition("\0")
    try:
        chosen = parse_settings(conf)
    except ValueError:
        return  # the command line refuses it
    parameters = RendezvousParameters("etcd-hosted", endpoint, "job", 1, 3, **chosen)
    assert Settings.from_parameters(parameters).endpoints
    Settings.from_parameters(parameters, is_v2=True)
    names = parse_names(parameters)
    assert len(names.endpoints) == len(names.peers)
    check(parameters)


_LISTED = b'[{"id":"123","name":"a","peerURLs":["http://a:2380"],"clientURLs":["http://a:2379"]}]'
_HEAD = b"HTTP/1.1 200 OK\r\nX-Etcd-Cluster-ID: cdf818194e3a8c32\r\nContent-Length: %d\r\n\r\n"
_STRANGE_LISTS = (b"7", b"null", b'[{"id":[]}]', b'[{"id":1e999}]', b'[{"peerURLs":{"a":1}}]', b"[" * 3000)


TARGETS: Mapping[str, Target] = {
    "records of v3": Target(
        _read_record,
        (b"\1" + pack_put(b"v"), b"\2" + pack_created(b"v"), b"\3" + pack_counter(-5)),
        (StoreCorruptError,),
    ),
    "incarnations of v3": Target(
        lambda data: Incarnation.decode(data, "key"), (_INCARNATION.encode(),), (StoreCorruptError,), (b"2 x",)
    ),
    "answers of v3": Target(
        _read_message,
        (_transaction(), _message("AuthenticateResponse", token="t"), _message("MemberListResponse"))
        + (_message("WatchResponse", created=True), _message("StatusResponse", version="3.5")),
        (CallError, StoreCorruptError),
    ),
    "HTTP/2 of v3": Target(
        over_a_socket(_call),
        (_answer("0", b"one", b""), _answer("0")),
        (CallError,),
        (
            _answer("5", details="etcdserver: requested lease not found"),
            _answer("16", details="etcdserver: invalid auth token"),
            _frame(4, 0, 0, b"") + _frame(3, 0, 1, bytes(4)) + _frame(7, 0, 0, bytes(8)),
        ),
    ),
    "answers of v2": Target(
        _read_v2,
        (_v2(value=pack(Value(b"v", "s"))), _v2(dir=True, nodes=[_ADDITION]), _v2(value="v1::", ttl=5)),
        (ValueError, StoreCorruptError),
    ),
    "members of a hosted etcd": Target(
        over_a_socket(_read_members),
        (_HEAD % len(_LISTED) + _LISTED, _HEAD % 2 + b"[]"),
        (ValueError, OSError),
        tuple(_HEAD % len(each) + each for each in _STRANGE_LISTS),
    ),
    "endpoints and settings": Target(
        _read_settings,
        (b"a,b,c:2379\0prefix=/p", b"http://h:1\0lease_ttl=30,peer_port=7,election_timeout=1e300"),
        (QuorateError, UsageError),
    ),
}
_OWN = "this process has written it"
_PROGRAM = "the installed program or package, shown as text"
ELSEWHERE: Mapping[str, str] = {
    "quorate_rendezvous_etcd/_hosted/peers:_id_of": _OWN,
    "quorate_rendezvous_etcd/_process:Member._read": _PROGRAM,
    "quorate_rendezvous_etcd/_process:_text_of": _PROGRAM,
    "quorate_rendezvous_etcd/_process:features_of": _PROGRAM,
    "quorate_rendezvous_etcd/_server:EtcdServer._metrics": "the answer of its own etcd, in tests",
    "quorate_rendezvous_etcd/_v3/lease:new_lease_id": _OWN,
    "quorate_rendezvous_etcd/_v3/member:Membership._try_to_join": "the name of its own key",
    "quorate_rendezvous_etcd/_v3/messages:_load": "the installed package etcd3",
}
