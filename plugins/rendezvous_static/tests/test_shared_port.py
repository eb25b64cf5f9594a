"""The port that a host of ``static`` lends to the workers; the whole, behind a firewall: ``tests/test_networks.py``."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from quorate.clock import monotonic, sleep
from quorate.errors import StoreLostError, StoreUnavailableError, UsageError
from quorate.rendezvous import PortLendingStore, RendezvousParameters
from quorate.testing import free_port
from quorate_rendezvous_static import TcpStore
from quorate_rendezvous_static._backends import check_static, open_static

DEADLINE = 20.0


@pytest.fixture
def shared_port() -> int:
    return free_port()


@pytest.fixture
def host(shared_port: int) -> Iterator[TcpStore]:
    store = open_static(parameters(free_port(), shared_port))
    yield store
    store.close()


def parameters(port: int, shared_port: int, rank: int = 0, **config: object) -> RendezvousParameters:
    config = {"rank": rank, "shared_port": shared_port, "linger_timeout": 0.2, **config}
    return RendezvousParameters("static", f"127.0.0.1:{port}", "job", 2, 2, **config)


def join_by(shared_port: int, **config: object) -> TcpStore:
    """Join where the port above is not open: nothing listens at port 1."""
    return open_static(parameters(1, shared_port, 1, **config))


def worker_listens(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_a_port_is_lent_and_taken_back_while_connections_stay(host: TcpStore, shared_port: int) -> None:
    assert isinstance(host, PortLendingStore)
    node = join_by(shared_port)
    try:
        for _ in range(2):
            host.lend_port()
            with worker_listens(shared_port):
                node.put("key", b"value")
                assert host.get(["key"]) == [b"value"]
                host.take_port_back()  # the worker still has it
            late = join_by(shared_port)
            assert late.get(["key"]) == [b"value"]
            late.close()
    finally:
        node.close()


def test_a_node_that_comes_while_the_port_is_lent_waits_for_it(host: TcpStore, shared_port: int) -> None:
    host.lend_port()
    with worker_listens(shared_port), pytest.raises(StoreUnavailableError, match=str(shared_port)):
        join_by(shared_port, connect_timeout=0.5)
    with pytest.raises(StoreUnavailableError):
        join_by(shared_port, connect_timeout=0.5)
    host.take_port_back()
    join_by(shared_port).close()


def test_a_connection_that_breaks_is_made_again_when_the_port_is_back(host: TcpStore, shared_port: int) -> None:
    node = join_by(shared_port, operation_timeout=0.3)
    try:
        host.lend_port()
        assert node._worker._socket is not None
        node._worker._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(StoreUnavailableError) as caught:
            node.put("key", b"value")
        assert not isinstance(caught.value, StoreLostError), "the host may be well"
        host.take_port_back()
        deadline = monotonic() + DEADLINE
        while True:
            try:
                node.put("key", b"value")
                break
            except StoreUnavailableError:
                assert monotonic() < deadline
                sleep(0.05)  # the node connects again by itself, and tells nobody
        assert host.get(["key"]) == [b"value"]
    finally:
        node.close()


def test_the_endpoint_comes_first_and_is_enough(host: TcpStore, shared_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = open_static(parameters(free_port(), int(taken.getsockname()[1])))  # by whom, does not matter
        other.close()
    port = int(host.endpoint.rpartition(":")[2])
    node = open_static(parameters(port, shared_port, 1))
    assert node._target.address is not None
    assert node._target.address.sockaddr[1] == port
    node.close()


def test_without_descriptors_a_node_waits_and_the_host_does_not_spin(host: TcpStore, shared_port: int) -> None:
    join_by(shared_port).close()  # it listens by now
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as node:
        lowest = os.dup(node.fileno())
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            node.connect(("127.0.0.1", shared_port))
            began, used = monotonic(), time.process_time()
            sleep(0.3)  # the span in which a loop without a pause would use the processor
            assert time.process_time() - used < 0.5 * (monotonic() - began)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    join_by(shared_port).close()


def test_a_node_that_comes_back_by_the_only_port_has_all_the_time_of_an_attempt(
    host: TcpStore, shared_port: int
) -> None:
    node = open_static(parameters(int(host.endpoint.rpartition(":")[2]), shared_port, 1))
    link, places = node._worker, node._target.places_again()
    assert [link._attempt_seconds(address, places) for address in places] == [3.0]
    node.close()
    node = join_by(shared_port)
    places = node._target.places_again()
    assert [node._worker._attempt_seconds(address, places) for address in places] == [1.0, 3.0]
    node.close()


def test_a_closed_store_has_given_the_port_back(shared_port: int) -> None:
    store = open_static(parameters(free_port(), shared_port))
    store.close()
    worker_listens(shared_port).close()
    store.lend_port()
    store.take_port_back()
    worker_listens(shared_port).close()


@pytest.mark.parametrize("shared_port", [29501, 70000, -1])
def test_a_port_that_cannot_be_shared_is_refused(shared_port: int) -> None:
    with pytest.raises(UsageError, match="shared_port"):
        check_static(parameters(29501, shared_port))
    check_static(parameters(29501, 0))
