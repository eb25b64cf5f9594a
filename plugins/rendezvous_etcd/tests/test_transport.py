"""Calls over HTTP/2 against members that behave badly: each ends with one error, within its deadline."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, StreamEnded
from h2.exceptions import H2Error

from quorate.net import Endpoint
from quorate.testing import settles
from quorate_rendezvous_etcd._dial import dial
from quorate_rendezvous_etcd._v3.http2 import LARGEST_MESSAGE, CallError
from quorate_rendezvous_etcd._v3.transport import Channel

from .etcd_harness import DEADLINE_SECONDS, InThread

Answer = Callable[[H2Connection, int, socket.socket], None]
_GRPC = [(":status", "200"), ("content-type", "application/grpc")]


def framed(message: bytes, size: int | None = None, compressed: int = 0) -> bytes:
    return bytes([compressed]) + (len(message) if size is None else size).to_bytes(4, "big") + message


def answer_with(*data: bytes, status: str = "0", message: str = "") -> Answer:
    """Answer as gRPC does."""

    def answer(http: H2Connection, stream: int, sock: socket.socket) -> None:
        http.send_headers(stream, _GRPC)
        for each in data:
            http.send_data(stream, each)
        http.send_headers(stream, [("grpc-status", status), ("grpc-message", message)], end_stream=True)

    return answer


@pytest.fixture
def member(nothing_left: None) -> Iterator[Callable[[Answer], Channel]]:
    """``member(answer)`` → a channel to a server that treats each request so; closed after the test."""
    made: list[tuple[Channel, socket.socket, threading.Thread]] = []

    def serve(listener: socket.socket, answer: Answer) -> None:
        threads = []
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                break
            threads.append(threading.Thread(target=_serve_one, args=(sock, answer)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def start(answer: Answer) -> Channel:
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=serve, args=(listener, answer))
        thread.start()
        channel = Channel(Endpoint("127.0.0.1", listener.getsockname()[1]), None)
        made.append((channel, listener, thread))
        return channel

    yield start
    for channel, listener, thread in made:
        channel.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def _serve_one(sock: socket.socket, answer: Answer) -> None:
    http = H2Connection(H2Configuration(client_side=False))
    with sock:
        try:
            http.initiate_connection()
            sock.sendall(http.data_to_send())
            while data := sock.recv(65536):
                for event in http.receive_data(data):
                    if isinstance(event, ConnectionTerminated):
                        return
                    if isinstance(event, DataReceived):
                        http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if isinstance(event, StreamEnded):
                        answer(http, event.stream_id, sock)
                sock.sendall(http.data_to_send())
        except (OSError, H2Error):
            pass  # the client has gone, or goes on after the end


def call(channel: Channel, timeout: float = DEADLINE_SECONDS, message: bytes = b"question") -> bytes:
    return channel.call("/service/Method", message, timeout)


def test_answers_come_whole(member: Callable[[Answer], Channel]) -> None:
    """In pieces, larger than a window, empty; one connection serves them all."""
    large = b"x" * 3_000_000
    sockets = []

    def answer(http: H2Connection, stream: int, sock: socket.socket) -> None:
        sockets.append(sock)
        answer_with(b"\0\0", b"\0\0\4an", b"sw")(http, stream, sock)

    channel = member(answer)
    for _ in range(3):
        assert call(channel) == b"answ"
        assert call(channel, message=large) == b"answ"
    assert len(set(sockets)) == 1
    assert call(member(answer_with(framed(b"")))) == b""


@pytest.mark.parametrize(
    ("answer", "code", "details"),
    [
        (answer_with(status="14", message="etcdserver: no%20leader"), "UNAVAILABLE", "etcdserver: no leader"),
        (answer_with(status="12", message="unknown service"), "UNIMPLEMENTED", "unknown service"),
        (answer_with(status="99"), "UNKNOWN", ""),
        (answer_with(status="-1"), "UNKNOWN", ""),
        (answer_with(status="many"), "UNKNOWN", ""),
        (answer_with(), "INTERNAL", "without an answer"),
        (answer_with(framed(b"half", 9)), "INTERNAL", "inside a message"),
        (answer_with(framed(b"packed", compressed=1)), "UNAVAILABLE", "compressed"),
        (answer_with(framed(b"", LARGEST_MESSAGE + 1)), "UNAVAILABLE", "the limit is"),
        (lambda http, stream, sock: http.reset_stream(stream, ErrorCodes.REFUSED_STREAM), "UNAVAILABLE", "error 7"),
        (lambda http, stream, sock: http.close_connection(), "UNAVAILABLE", "closes the connection"),
        (lambda http, stream, sock: sock.shutdown(socket.SHUT_RDWR), "UNAVAILABLE", "connection"),
        (lambda http, stream, sock: sock.sendall(bytes(90)), "UNAVAILABLE", "does not speak HTTP/2"),
        (
            lambda http, stream, sock: http.send_headers(stream, [(":status", "502")], end_stream=True),
            "UNAVAILABLE",
            "HTTP status 502",
        ),
        (
            lambda http, stream, sock: http.send_headers(stream, [(":status", "404")], end_stream=True),
            "UNIMPLEMENTED",
            "HTTP status 404",
        ),
    ],
)
def test_each_bad_answer_is_one_error_and_the_next_call_is_made(
    member: Callable[[Answer], Channel], answer: Answer, code: str, details: str
) -> None:
    calls = []

    def answer_badly_once(http: H2Connection, stream: int, sock: socket.socket) -> None:
        calls.append(stream)
        (answer if len(calls) == 1 else answer_with(framed(b"good")))(http, stream, sock)

    channel = member(answer_badly_once)
    with pytest.raises(CallError) as caught:
        call(channel)
    assert caught.value.code == code
    assert details in caught.value.details
    assert call(channel) == b"good"


def _trickle(http: H2Connection, stream: int, sock: socket.socket) -> None:
    """Send a little again and again, and never all of it."""
    http.send_headers(stream, _GRPC)
    http.send_data(stream, framed(b"", 1000))
    ticker = threading.Event()
    for _ in range(100):
        sock.sendall(http.data_to_send())
        ticker.wait(0.05)
        http.send_data(stream, b"x")


@pytest.mark.parametrize("answer", [lambda http, stream, sock: None, _trickle], ids=["silent", "slow"])
def test_the_deadline_holds(member: Callable[[Answer], Channel], answer: Answer) -> None:
    channel = member(answer)
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        call(channel, timeout=0.3)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert 0.3 <= time.monotonic() - began < 4.0, "the slow one goes on for five seconds"


def test_the_deadline_holds_where_nobody_accepts_or_greets(nothing_left: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = Channel(Endpoint("127.0.0.1", listener.getsockname()[1]), None)
        # Larger than what a member may be sent before it has said anything.
        for message in (b"small", b"x" * 10_000_000):
            with pytest.raises(CallError) as caught:
                call(channel, timeout=0.2, message=message)
            assert caught.value.code == "DEADLINE_EXCEEDED"
        channel.close()


def test_closing_ends_calls_and_streams_of_other_threads(member: Callable[[Answer], Channel]) -> None:
    asked = threading.Semaphore(0)
    channel = member(lambda http, stream, sock: asked.release())
    calls = [InThread(call, channel) for _ in range(2)]
    calls.append(InThread(lambda: next(channel.stream("/service/Method", b"", DEADLINE_SECONDS))))
    for _ in calls:
        assert asked.acquire(timeout=DEADLINE_SECONDS)
    channel.close()
    for each in calls:
        with pytest.raises(CallError) as caught:
            each.result()
        assert caught.value.code == "CANCELLED"
    with pytest.raises(CallError):
        call(channel)


def test_a_connection_that_broke_while_it_was_idle_is_not_used(member: Callable[[Answer], Channel]) -> None:
    """Nor does anybody hear of it."""
    sockets: list[Any] = []

    def answer(http: H2Connection, stream: int, sock: socket.socket) -> None:
        sockets.append(sock)
        answer_with(framed(b"good"))(http, stream, sock)

    channel = member(answer)
    assert call(channel) == b"good"
    sockets[0].shutdown(socket.SHUT_RDWR)
    assert settles(lambda: sockets[0].fileno() < 0)
    assert call(channel) == b"good"
    assert len(sockets) == 2


@pytest.mark.slow(reason="a member counts as gone after ten silent seconds and three more")
def test_who_only_waits_notices_a_member_that_is_gone(member: Callable[[Answer], Channel]) -> None:
    released = threading.Event()
    channel = member(lambda http, stream, sock: released.wait(DEADLINE_SECONDS) and None)
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        next(channel.stream("/service/Method", b"", 3600.0))
    released.set()
    assert caught.value.code == "UNAVAILABLE"
    assert "ping" in caught.value.details
    assert time.monotonic() - began >= 13.0


def test_who_only_waits_is_not_disturbed_by_silence(member: Callable[[Answer], Channel]) -> None:
    """The member answers pings; a short silence is none of anybody's business."""
    channel = member(lambda http, stream, sock: None)
    with pytest.raises(CallError) as caught:
        next(channel.stream("/service/Method", b"", 0.5))
    assert caught.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.skipif(sys.platform != "linux", reason="it is an option of Linux")
def test_lost_packets_are_sent_again_at_even_intervals() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint(*listener.getsockname())
        made: list[socket.socket] = []
        with dial(endpoint, time.monotonic() + DEADLINE_SECONDS, made.append, made.remove) as sock:
            thin_linear_timeouts = 16  # linux/tcp.h
            assert sock.getsockopt(socket.IPPROTO_TCP, thin_linear_timeouts) == 1
