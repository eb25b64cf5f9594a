"""Garbage, floods and clients that do not read or send: each costs its own connection, and disturbs no other."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from quorate.errors import StoreUnavailableError
from quorate_rendezvous_static import Limits, TcpStore, TcpStoreServer
from quorate_rendezvous_static._wire import (
    LARGEST_FRAME,
    LARGEST_KEY,
    LARGEST_VALUE,
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
        HELLO + encode(Code.PUT, 1, 0, [b"key", bytes(LARGEST_VALUE + 1)]),
        HELLO + struct.pack(">I", LARGEST_FRAME + 1),
    ],
)
def test_what_makes_no_sense_ends_its_own_connection(connect: Any, dial: Any, bytes_sent: bytes) -> None:
    store, client = connect(), dial()
    store.put("before", b"1")
    try:
        client.sendall(bytes_sent)
        while not is_closed_by_server(client):
            pass  # it was answered first
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert store.get(["before", "key"]) == [b"1", None]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.booleans(), garbage=st.binary(min_size=1, max_size=200))
def test_random_garbage_harms_no_other_client(
    connect: Any, server: TcpStoreServer, before: bool, garbage: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS) as client:
        client.sendall((HELLO if before else b"") + garbage)
    store = connect()
    assert store.add("n", 1) > 0
    store.close()


@pytest.mark.server(limits=Limits(hello_timeout_seconds=0.1))
def test_a_half_open_client_is_sent_away_at_the_hello_deadline(connect: Any, dial: Any) -> None:
    store = connect()
    silent, slow = dial(), dial()
    slow.sendall(HELLO[:-1])
    assert is_closed_by_server(silent)
    assert is_closed_by_server(slow)
    store.put("key", b"value")  # a client that said hello in time stays


def test_a_client_that_does_not_read_is_not_read_from(connect: Any, dial: Any, server: TcpStoreServer) -> None:
    store = connect()
    store.put("big", bytes(1 << 20))
    greedy = dial()
    greedy.setblocking(False)
    sent, asks = 0, (HELLO + encode(Code.GET, 1, 0, [b"big"])) + encode(Code.GET, 1, 0, [b"big"]) * 1000
    with suppress(BlockingIOError):
        while sent < len(asks):
            sent += greedy.send(asks[sent:])
            store.get(["big"])
    for _ in range(20):
        assert store.get(["big"]) == [bytes(1 << 20)]
    held = max(len(peer.out) for peer in list(server._peers._peers))
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


# --- limits ---------------------------------------------------------------------------------------------------------

HOST = """
import os, resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))
from quorate_rendezvous_static import TcpStore, TcpStoreServer
server = TcpStoreServer("127.0.0.1", 0, "job")
store = TcpStore("127.0.0.1", server.port, "job", server=server)
others = len(os.listdir("/proc/self/fd"))
print(server.port, flush=True)
for line in sys.stdin:
    number = store.add("n", 1)
    held = len(os.listdir("/proc/self/fd")) - others
    print(number, held, os.times().user + os.times().system, flush=True)
"""


@pytest.mark.parametrize("hello", [b"", HELLO[:-1], HELLO], ids=["silent", "half a hello", "clients"])
def test_a_flood_takes_a_quarter_of_the_descriptors_and_harms_no_running_job(
    start_process: Any, capfd: pytest.CaptureFixture[str], hello: bytes
) -> None:
    limit = 128
    host = start_process(HOST, limit)
    port = int(host.read_line())
    flood = []
    try:
        for number in range(1, 4 * limit):
            flood.append(socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS))
            flood[-1].sendall(hello)
            if number % 64 == 0:
                host.tell("step")
                assert int(host.read_line().split()[0]) == number // 64
        host.tell("step")
        answered, held, _ = host.read_line().split()
        assert int(answered) == 8
        assert 8 <= int(held) <= limit // 4
        error = capfd.readouterr().err
        assert error.count(f"the rendezvous store at 127.0.0.1:{port} has") == 1
        assert "ulimit -n" in error
    finally:
        for sock in flood:
            sock.close()
    store = TcpStore("127.0.0.1", port, "job", connect_timeout=DEADLINE_SECONDS)
    assert store.add("n", 0) == 8
    store.close()


def test_one_client_too_many_is_given_the_reason(start_process: Any) -> None:
    host = start_process(HOST, 64)
    port = int(host.read_line())
    stores: list[TcpStore] = []

    def connect_all() -> None:
        while len(stores) < 64:
            stores.append(TcpStore("127.0.0.1", port, "job", connect_timeout=1.0))

    with pytest.raises(StoreUnavailableError, match=r"limit of \d+ connections; raise the limit of open files"):
        connect_all()
    assert [store.add("m", 1) for store in stores] == list(range(1, len(stores) + 1))
    for store in stores:
        store.close()


def test_a_host_without_descriptors_pauses_and_does_not_spin(start_process: Any) -> None:
    host = start_process(
        HOST.replace(
            "for line in sys.stdin",
            """
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
os.listdir = lambda path: []
for line in sys.stdin""",
        ),
        64,
    )
    port = int(host.read_line())
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS):
        host.tell("step")
        before = host.read_line().split()
        time.sleep(1.0)  # the span in which a loop without a pause would use the processor
        host.tell("step")
        after = host.read_line().split()
    assert (before[0], after[0]) == ("1", "2")
    assert float(after[2]) - float(before[2]) < 0.5


@pytest.mark.server(limits=Limits(transfer_timeout_seconds=0.3))
@pytest.mark.parametrize("sent", [HELLO + struct.pack(">I", 1000), HELLO + encode(Code.GET, 1, 0, [b"big"]) * 50])
def test_a_client_that_sends_or_reads_too_slowly_is_cut_off(
    connect: Any, dial: Any, server: TcpStoreServer, sent: bytes
) -> None:
    store, slow = connect(), dial()
    store.put("big", bytes(1 << 20))
    slow.sendall(sent)
    end = time.monotonic() + 10.0  # the system itself notices a full socket after 14 s
    while len(server._peers) < 3:  # it is accepted
        assert time.monotonic() < end
    while len(server._peers) > 2:
        assert time.monotonic() < end
        store.get(["n"])  # a client that waits between its requests stays
        time.sleep(0.01)
    assert store.get(["big"]) == [bytes(1 << 20)]


@pytest.mark.server(limits=Limits(transfer_timeout_seconds=0.3))
def test_a_client_that_sends_many_requests_without_a_pause_is_not_slow(dial: Any) -> None:
    busy, frames, answered = dial(), FrameBuffer(), 0
    request = encode(Code.ADD, 1, 1, [b"n"])
    stream, end = HELLO + request[:-1], time.monotonic() + 1.0
    while time.monotonic() < end:
        busy.sendall(stream)
        stream = request[-1:] + request[:-1]  # there is always a request that has arrived in part
        if answered == 0:
            answered = 1
            continue
        frames.feed(busy.recv(1 << 16))
        while frames.next() is not None:
            answered += 1
    assert answered > 10


@pytest.mark.server(limits=Limits(buffered_bytes=4 << 20))
def test_what_all_connections_hold_together_is_bounded(connect: Any, dial: Any, server: TcpStoreServer) -> None:
    store = connect()
    large = HELLO + struct.pack(">I", LARGEST_FRAME) + bytes(LARGEST_FRAME - 1)
    for _ in range(8):
        dial().sendall(large)
        store.put("key", bytes(1 << 20))
    end = time.monotonic() + DEADLINE_SECONDS
    while len(server._peers) > 4:  # two of the store, and what fits
        assert time.monotonic() < end
        assert store.get(["key"]) == [bytes(1 << 20)]
    assert server._peers._buffered_bytes <= 4 << 20


@pytest.mark.server(limits=Limits(buffered_bytes=3 << 20))
def test_a_write_that_wakes_many_who_do_not_read_drops_those(connect: Any, dial: Any) -> None:
    store = connect()
    store.put("big", bytes(1 << 20))
    waiting = [dial() for _ in range(10)]
    for sock in waiting:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(HELLO + encode(Code.WAIT, 1, 0, [b"key"]))
        sock.recv(4096)
    store.put("key", bytes(1 << 20))
    assert store.get(["key", "big"]) == [bytes(1 << 20)] * 2
    assert store.add("n", 1) == 1


def test_a_wait_for_a_key_that_is_too_long_ends_its_connection(connect: Any, dial: Any, server: TcpStoreServer) -> None:
    store, client = connect(), dial()
    client.sendall(HELLO + encode(Code.WAIT, 1, 0, [b"k" * (LARGEST_KEY + 1)]))
    while not is_closed_by_server(client):
        pass
    assert not server._waiters
    store.put("key", b"value")


@pytest.mark.server(limits=Limits(store_bytes=1 << 16))
def test_empty_values_of_short_keys_fill_the_store_too(connect: Any) -> None:
    store = connect()

    def fill() -> None:
        for number in range(10_000):
            store.put(f"{number}", b"")

    with pytest.raises(StoreUnavailableError, match="takes no more"):
        fill()
    store.delete("")
    assert store.create("1", b"")


@pytest.mark.parametrize("timeout", [1e9, 1e12, 1e300])
def test_times_beyond_what_the_system_takes_are_as_good_as_for_ever(in_thread: Any, timeout: float) -> None:
    server = TcpStoreServer("localhost", 0, "job", linger_timeout=timeout, resolve_timeout=timeout)
    store = TcpStore("localhost", server.port, "job", connect_timeout=timeout, operation_timeout=timeout)
    waiting = in_thread(lambda: store.wait("key", timeout))
    other = TcpStore("127.0.0.1", server.port, "job")
    closing = in_thread(server.close)
    other.put("key", b"value")
    assert waiting.result() == b"value"
    store.close()
    assert other.get(["key"]) == [b"value"]
    other.close()
    closing.result()


def test_an_error_that_nothing_foresees_ends_the_store_with_a_sentence(
    server: TcpStoreServer, connect: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    store = connect()

    def fail(now: float) -> None:
        raise KeyError("unforeseen")

    server._peers.drop_late = fail  # type: ignore[method-assign] # stands for any mistake in the loop

    def get_for_ever() -> None:
        while True:
            store.get(["key"])

    with pytest.raises(StoreUnavailableError, match="is gone"):
        get_for_ever()
    error = capfd.readouterr().err
    assert f"the rendezvous store at 127.0.0.1:{server.port} has ended" in error
    assert "KeyError: 'unforeseen'" in error
    assert server.addresses == []
