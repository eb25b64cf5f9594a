"""The host dies, freezes, is not there yet, or only the connection breaks: each is recognised in time."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from quorate import testing
from quorate.errors import StoreLostError, StoreUnavailableError
from quorate_rendezvous_static import TcpStore, TcpStoreServer

LONG = 30.0


# --- the host is killed ---------------------------------------------------------------------------------------------


def test_a_killed_host_is_lost_to_a_wait_and_to_an_operation(start_server: Any, in_thread: Any) -> None:
    child, port = start_server()
    store = TcpStore("127.0.0.1", port, "job", operation_timeout=LONG, hosted_by="the agent with node rank 0")
    watcher = TcpStore("127.0.0.1", port, "job", operation_timeout=LONG)
    store.put("key", b"value")
    waiter = in_thread(lambda: watcher.wait("never", 10 * LONG))
    os.kill(child.process.pid, signal.SIGKILL)
    with pytest.raises(StoreLostError):
        waiter.result()
    for call in (
        lambda: store.get(["key"]),
        lambda: store.wait("key", LONG),
        lambda: store.create("key", b""),
        lambda: store.add("n", 1),
    ):
        started = time.monotonic()
        with pytest.raises(StoreLostError, match=rf"the agent with node rank 0 \(127.0.0.1:{port}\) is gone"):
            call()
        assert time.monotonic() - started < LONG  # at once, not at the operation's deadline
    store.close()
    watcher.close()


def test_a_host_that_came_back_empty_is_not_taken_for_the_old_one(start_server: Any) -> None:
    child, port = start_server()
    store = TcpStore("127.0.0.1", port, "job")
    store.put("key", b"value")
    child.process.kill()
    child.process.wait()
    start_server(port)
    with pytest.raises(StoreLostError, match="taken its place"):
        store.get(["key"])
    store.close()


FORKING_HOST = """
import os, sys, warnings
from quorate_rendezvous_static import TcpStore, TcpStoreServer
warnings.simplefilter("ignore")  # Python warns of forks beside threads; function workers are started that way
server = TcpStoreServer("127.0.0.1", 0, "job")
own = TcpStore("127.0.0.1", server.port, "job")
own.put("key", b"value")
child = os.fork()
if child == 0:
    from quorate.errors import StoreUnavailableError
    try:
        own.get(["key"])
    except StoreUnavailableError:
        os.write(1, b"refused\\n")
    sys.stdin.read()
    os._exit(0)
os.write(1, f"{server.port} {own.get(['key'])}\\n".encode())
sys.stdin.read()
"""


def test_a_forked_child_neither_uses_nor_holds_the_store_of_its_parent(start_process: Any) -> None:
    host = start_process(FORKING_HOST)
    lines = sorted([host.read_line(), host.read_line()])
    assert lines[1] == "refused"
    port, value = lines[0].split(" ", 1)
    assert value == "[b'value']"
    store = TcpStore("127.0.0.1", int(port), "job", operation_timeout=LONG)
    os.kill(host.process.pid, signal.SIGKILL)
    with pytest.raises(StoreLostError):
        store.wait("never", LONG)
    store.close()


# --- the host is frozen ---------------------------------------------------------------------------------------------


def test_a_frozen_host_is_unavailable_until_it_thaws(start_server: Any) -> None:
    child, port = start_server()
    store = TcpStore("127.0.0.1", port, "job", operation_timeout=0.3)
    store.put("key", b"value")
    os.kill(child.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.process.pid, os.WSTOPPED)  # until then it may still answer
    try:
        for call in (lambda: store.get(["key"]), lambda: store.add("n", 1), lambda: store.wait("key", 0.1)):
            with pytest.raises(StoreUnavailableError, match="did not answer in time") as caught:
                call()
            assert not isinstance(caught.value, StoreLostError)
    finally:
        os.kill(child.process.pid, signal.SIGCONT)
    end = time.monotonic() + LONG
    while True:
        try:
            assert store.get(["key", "n"]) == [b"value", b"1"]  # the add that seemed to fail was carried out
            break
        except StoreUnavailableError:
            assert time.monotonic() < end
    assert store.wait("key", LONG) == b"value"
    store.close()


# --- packets are lost ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="it is an option of Linux")
def test_lost_packets_are_sent_again_at_even_intervals_from_both_ends(server: TcpStoreServer, connect: Any) -> None:
    store = connect()
    store.put("key", b"value")
    accepted = server._peers.sockets
    assert accepted
    thin_linear_timeouts = 16  # linux/tcp.h
    for sock in (store._worker._socket, *accepted):
        assert sock.getsockopt(socket.IPPROTO_TCP, thin_linear_timeouts) == 1


# --- only the connection breaks -------------------------------------------------------------------------------------


class Proxy:
    """Passes bytes on to a server; :meth:`cut` breaks every connection through it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target), LONG)
            near.settimeout(LONG)
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pass, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cut(self) -> None:
        for pair in self._pairs:
            for sock in pair:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(LONG)
        for near, far in self._pairs:
            near.close()
            far.close()


@pytest.fixture
def proxy(server: TcpStoreServer) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


def test_a_broken_connection_is_made_again_where_that_is_safe(connect: Any, proxy: Proxy) -> None:
    store, other = connect(port=proxy.port), connect()
    store.put("key", b"value")
    safe: list[tuple[Callable[[], Any], Any]] = [
        (lambda: store.get(["key"]), [b"value"]),
        (lambda: store.wait("key", LONG), b"value"),
        (lambda: store.put("key", b"value"), None),
        (lambda: store.delete("nothing"), None),
    ]
    for call, answer in safe:
        proxy.cut()
        assert call() == answer
    dangerous: list[Callable[[], Any]] = [lambda: store.create("once", b""), lambda: store.add("n", 1)]
    for risky in dangerous:
        proxy.cut()
        with pytest.raises(StoreUnavailableError, match="broke") as caught:
            risky()
        assert not isinstance(caught.value, StoreLostError)
        risky()
    assert int(other.get(["n"])[0]) in (1, 2)


def test_a_wait_outlives_a_broken_connection(
    connect: Any, proxy: Proxy, in_thread: Any, server: TcpStoreServer
) -> None:
    store, other = connect(port=proxy.port), connect()
    waiter = in_thread(lambda: store.wait("key", LONG))
    for _ in range(3):
        _until(lambda: bool(server._waiters))
        before = [peer for peers in list(server._waiters.values()) for peer in list(peers)]
        proxy.cut()
        _until(lambda before=before: not any(peer in server._peers for peer in before))
    other.put("key", b"value")
    assert waiter.result() == b"value"


# --- there is no host -----------------------------------------------------------------------------------------------


def test_a_client_waits_for_a_host_that_comes_later(start_server: Any, in_thread: Any, free_port: int) -> None:
    opening = in_thread(lambda: TcpStore("127.0.0.1", free_port, "job", connect_timeout=LONG))
    start_server(free_port)
    store = opening.result()
    assert store.add("n", 1) == 1
    store.close()


def test_an_endpoint_without_a_listener_is_named_with_what_was_tried(free_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        TcpStore("localhost", free_port, "job", connect_timeout=0.3, hosted_by="the agent with node rank 0")
    assert time.monotonic() - started < LONG
    text = str(caught.value)
    for part in (f"localhost:{free_port}", f"127.0.0.1:{free_port}", "refused", "node rank 0", "--rdzv-endpoint"):
        assert part in text


def test_an_attempt_that_is_cut_short_does_not_hide_what_the_one_before_has_found_out(in_thread: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        opening = in_thread(lambda: TcpStore("127.0.0.1", port, "job", connect_timeout=1.0))
        first, _ = listener.accept()
        first.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        first.recv(4096)
        first.close()
        second, _ = listener.accept()  # which is never answered
        with second, pytest.raises(StoreUnavailableError, match="is not a quorate store"):
            opening.result()


def test_an_unknown_name_is_told_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"no-such-host\.invalid"):
        TcpStore("no-such-host.invalid", 1, "job", connect_timeout=0.5)
    assert time.monotonic() - started < LONG


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", bytes(1000)])
def test_another_service_on_the_endpoint_is_recognised(in_thread: Any, answer: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(LONG)
                try:
                    sock.recv(4096)
                    sock.sendall(answer)
                except OSError:
                    pass

    service = in_thread(serve)
    with pytest.raises(StoreUnavailableError, match=r"not a quorate store|closed it|reset"):
        TcpStore("127.0.0.1", port, "job", connect_timeout=0.3)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    service.result()


def test_a_service_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            TcpStore("127.0.0.1", listener.getsockname()[1], "job", connect_timeout=0.3)
        assert time.monotonic() - started < LONG


def _until(condition: Any) -> None:
    """Return once ``condition()`` holds.  For the server's internal state."""
    assert testing.settles(condition, LONG)
