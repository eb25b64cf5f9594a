"""Strangers, garbage and clients that do not read: each ends its own connection and disturbs nobody."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorate_rendezvous_static import TcpStoreServer
from quorate_rendezvous_static._wire import (
    LARGEST_FRAME,
    MAGIC,
    PROTOCOL_VERSION,
    Code,
    FrameBuffer,
    Message,
    decode,
    encode,
)

DEADLINE_SECONDS = 30.0
HELLO = encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, b"job"])


@pytest.fixture
def dial(server: TcpStoreServer) -> Iterator[Any]:
    """``dial()`` → a raw connection to the server."""
    made: list[socket.socket] = []

    def make() -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS))
        return made[-1]

    yield make
    for sock in made:
        sock.close()


def is_closed_by_server(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # the start of TLS
        b"SSH-2.0-OpenSSH_9.0\r\n",
        bytes(4),
        b"\xff" * 100,
        frame(bytes(4000)),
        frame(b"\x01" * 17),
        encode(Code.GET, 1, 0, [b"key"]),
        encode(Code.HELLO, 0, PROTOCOL_VERSION, [b"other magic", b"job"]),
        encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC]),
        encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, bytes(5000)]),
        HELLO + encode(200, 1),
        HELLO + HELLO,
        HELLO + encode(Code.CREATE, 1, 0, [b"key"]),
        HELLO + encode(Code.PUT, 1, 0, [b"key"]),
        HELLO + encode(Code.WAIT, 1),
        HELLO + encode(Code.ADD, 1, 0, [None]),
        HELLO + encode(Code.GET, 1, 0, [None, b"key"]),
        HELLO + encode(Code.PUT, 1, 0, [b"k" * 5000, b"v"]),
        HELLO + encode(Code.PUT, 1, 0, [b"key", bytes((1 << 20) + 1)]),
        HELLO + struct.pack(">I", LARGEST_FRAME + 1),
    ],
)
def test_what_makes_no_sense_ends_its_own_connection(connect: Any, dial: Any, bytes_sent: bytes) -> None:
    store, stranger = connect(), dial()
    store.put("before", b"1")
    try:
        stranger.sendall(bytes_sent)
        while not is_closed_by_server(stranger):
            pass  # it was answered first
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert store.get(["before", "key"]) == [b"1", None]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.booleans(), garbage=st.binary(min_size=1, max_size=200))
def test_random_garbage_harms_nobody(connect: Any, server: TcpStoreServer, before: bool, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS) as stranger:
        stranger.sendall((HELLO if before else b"") + garbage)
    store = connect()
    assert store.add("n", 1) > 0
    store.close()


def test_a_half_open_stranger_is_sent_away_at_the_hello_deadline(
    connect: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate_rendezvous_static._server.HELLO_TIMEOUT_SECONDS", 0.1)
    store = connect()
    silent, slow = dial(), dial()
    slow.sendall(HELLO[:-1])
    assert is_closed_by_server(silent)
    assert is_closed_by_server(slow)
    store.put("key", b"value")  # whoever said hello in time stays


def test_strangers_are_bounded(dial: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate_rendezvous_static._server.MOST_STRANGERS", 3)
    strangers = [dial() for _ in range(5)]
    assert [is_closed_by_server(stranger) for stranger in strangers[:2]] == [True, True]
    connect().put("key", b"value")


def test_a_client_that_does_not_read_is_not_read_from(connect: Any, dial: Any, server: TcpStoreServer) -> None:
    store = connect()
    store.put("big", bytes(1 << 20))
    greedy = dial()
    greedy.setblocking(False)
    sent, asks = 0, (HELLO + encode(Code.GET, 1, 0, [b"big"])) + encode(Code.GET, 1, 0, [b"big"]) * 1000
    try:
        while sent < len(asks):
            sent += greedy.send(asks[sent:])
            store.get(["big"])
    except BlockingIOError:
        pass
    for _ in range(20):
        assert store.get(["big"]) == [bytes(1 << 20)]
    held = max(len(peer.out) for peer in server._peers)
    assert 0 < held < 2 * LARGEST_FRAME
    # Once it reads, it gets every answer that it asked for.
    greedy.settimeout(DEADLINE_SECONDS)
    frames, answers = FrameBuffer(), 0
    while answers < 50:
        frames.feed(greedy.recv(1 << 20))
        while (body := frames.next()) is not None:
            answers += decode(body).items == [bytes(1 << 20)]


def test_a_request_in_single_bytes_is_answered(connect: Any, dial: Any) -> None:
    connect().put("key", b"value")
    slow, frames = dial(), FrameBuffer()
    for byte in HELLO + encode(Code.GET, 9, 0, [b"key"]):
        slow.sendall(bytes([byte]))
    answers: list[Message] = []
    while len(answers) < 2:
        frames.feed(slow.recv(1 << 16))
        while (body := frames.next()) is not None:
            answers.append(decode(body))
    assert answers[1].items == [b"value"]


def test_a_client_that_vanishes_while_it_waits_is_forgotten(connect: Any, dial: Any, server: TcpStoreServer) -> None:
    store, gone = connect(), dial()
    gone.sendall(HELLO + encode(Code.WAIT, 1, 0, [b"key"]))
    frames = FrameBuffer()
    while True:  # until the server says that it waits
        frames.feed(gone.recv(4096))
        bodies = iter(frames.next, None)
        if any(decode(body).code == Code.PENDING for body in bodies):
            break
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()  # with a reset
    end = time.monotonic() + DEADLINE_SECONDS
    while server._waiters:
        assert time.monotonic() < end
        store.get(["key"])
    store.put("key", b"value")


def test_running_out_of_descriptors_is_a_pause_and_no_end(connect: Any) -> None:
    store = connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    raw = socket.socket()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        taken += _all_descriptors(raw)
        raw.settimeout(DEADLINE_SECONDS)
        raw.connect(("127.0.0.1", int(store.endpoint.rpartition(":")[2])))
        raw.sendall(HELLO)
        assert store.add("n", 1) == 1
        assert store.add("n", 1) == 2
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raw.recv(4096)  # it was accepted after the pause
    raw.close()


def _all_descriptors(sock: socket.socket) -> list[int]:
    taken: list[int] = []
    try:
        while True:
            taken.append(os.dup(sock.fileno()))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    return taken
