"""A connection that stands still, as on a link that loses packets, holds up neither heartbeats nor readings."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from quorate.errors import StoreUnavailableError
from quorate.net import parse_endpoint
from quorate.testing import CuttableProxy, answered, settles
from quorate_rendezvous_c10d._connection import accepted_sockets

_THIN_LINEAR_TIMEOUTS = 16  # linux/tcp.h


class _HoldingProxy(CuttableProxy):
    """Can hold back what comes over one connection in one direction."""

    def __init__(self, target: str) -> None:
        self._held: set[socket.socket] = set()
        self._backlog: list[tuple[socket.socket, bytes]] = []
        self._holding = threading.Lock()
        super().__init__(target)

    @contextmanager
    def holding(self, store: Any, answers: bool) -> Iterator[None]:
        """Hold back the answers to a store's working connection, or else what it asks; pass it on at the end."""
        (client,) = [sock for sock in list(self._peers) if _peer_port(sock) == store._work.local_port()]
        with self._holding:
            self._held = {self._peers[client] if answers else client}
        try:
            yield
        finally:
            with self._holding:
                for sink, data in self._backlog:
                    with suppress(OSError):  # its connection has been closed meanwhile
                        sink.sendall(data)
                self._held, self._backlog = set(), []

    def lead_to(self, target: str) -> None:
        """Have connections from now on lead to another server."""
        self._target = parse_endpoint(target)

    def _forward(self, sock: socket.socket) -> None:
        with self._holding:
            if sock in self._held:
                data = sock.recv(1 << 16)
                if data:
                    self._backlog.append((self._peers[sock], data))
                    return
                self._held.discard(sock)
        super()._forward(sock)


def _peer_port(sock: socket.socket) -> int | None:
    try:
        return int(sock.getpeername()[1])
    except OSError:
        return None


@pytest.fixture
def proxy(endpoint: str, open_store: Callable[..., Any]) -> Iterator[_HoldingProxy]:
    open_store(endpoint)
    with _HoldingProxy(endpoint) as made:
        yield made


@pytest.mark.parametrize("answers", [True, False], ids=["answers", "questions"])
def test_heartbeats_and_readings_go_on_while_a_connection_stands_still(
    proxy: _HoldingProxy, answers: bool, endpoint: str, open_store: Callable[..., Any]
) -> None:
    store, other = open_store(proxy.endpoint), open_store(endpoint)
    store.put("key", b"1")
    other.create("taken", b"by another")
    with proxy.holding(store, answers):
        for value in (b"2", b"3"):
            store.put("key", value)
            assert other.get(["key"]) == store.get(["key"]) == [value]
        assert store.get(["absent", "key", "taken"]) == [None, b"3", b"by another"]
        assert store.create("new", b"value")
        assert not store.create("taken", b"value")
    # What was held back arrives now, and writes nothing again; torch's own calls skip the answers to it.
    assert store.add("count", 1) == 1
    assert other.get(["key", "new", "taken"]) == [b"3", b"value", b"by another"]
    store.put("key", b"4")
    assert other.get(["key"]) == [b"4"]
    store.close()


def test_a_connection_that_stands_still_for_long_is_made_again(
    proxy: _HoldingProxy, open_store: Callable[..., Any]
) -> None:
    store = open_store(proxy.endpoint, operation_timeout=0.7)
    answered(lambda: store.put("key", b"1"))
    broken = store._work

    def is_replaced() -> bool:
        with suppress(StoreUnavailableError):
            store.put("key", b"2")
        return store._work is not broken

    with proxy.holding(store, answers=True):
        assert settles(is_replaced)
        answered(lambda: store.put("key", b"3"))
        assert answered(lambda: store.add("count", 0)) == 0
    assert answered(lambda: store.get(["key"])) == [b"3"]
    store.close()


def test_another_store_is_not_asked(proxy: _HoldingProxy, open_store: Callable[..., Any]) -> None:
    another = open_store("127.0.0.1:0", max_nodes=1)
    store = open_store(proxy.endpoint, operation_timeout=1.5)
    proxy.lead_to(another.endpoint)
    with proxy.holding(store, answers=True), pytest.raises(StoreUnavailableError):
        store.create("key", b"value")
    assert another.get(["key"]) == [None]
    store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="it is an option of Linux")
def test_lost_packets_are_sent_again_at_even_intervals_from_both_ends(
    endpoint: str, open_store: Callable[..., Any]
) -> None:
    host, client = open_store(endpoint), open_store(endpoint)
    client.wait("absent", 0.01)
    ends = [*accepted_sockets(host._port), host._work.sock, client._work.sock, client._waiter.sock]
    try:
        assert len(ends) >= 6
        for sock in ends:
            assert sock.getsockopt(socket.IPPROTO_TCP, _THIN_LINEAR_TIMEOUTS) == 1
    finally:
        for sock in ends[:-3]:
            sock.close()
