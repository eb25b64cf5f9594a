"""``quorate.net``: endpoints as people write them, names, listeners, and connections that forked children give up."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quorate import UsageError, net
from quorate.net import Endpoint, parse_endpoint
from quorate.reach import advertised_address
from quorate.testing import open_descriptors

SECONDS = 10.0


# --- endpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "endpoint"),
    [
        ("host:29400", {}, Endpoint("host", 29400)),
        ("  host:1  ", {}, Endpoint("host", 1)),
        ("[::1]:65535", {}, Endpoint("::1", 65535)),
        ("[fe80::1%eth0]:7", {}, Endpoint("fe80::1%eth0", 7)),
        ("host", {"default_port": 5}, Endpoint("host", 5)),
        ("[::1]", {"default_port": 5}, Endpoint("::1", 5)),
        ("::1", {"default_port": 5, "bare_ipv6": True}, Endpoint("::1", 5)),
        ("host:0", {"lowest_port": 0}, Endpoint("host", 0)),
    ],
)
def test_an_endpoint_is_read(text: str, options: dict[str, Any], endpoint: Endpoint) -> None:
    assert parse_endpoint(text, **options) == endpoint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("host", "no port from 1 to 65535"),
        (":29400", "it has no host"),
        ("host:0", "no port from 1 to 65535"),
        ("host:65536", "no port from 1"),
        ("host:99999999999999999999", "no port from 1"),
        ("host:port", "no port from 1"),
        ("host:²", "no port from 1"),
        ("host:-1", "no port from 1"),
        ("::1", "an IPv6 address needs brackets"),
        ("a:b:c", "an IPv6 address needs brackets"),
        ("[::1:29400", "brackets do not match"),
        ("[::1]29400", "brackets do not match"),
        ("[host]:29400", "only an IPv6 address is written in brackets"),
        ("two words:1", "is not a host"),
        ("http://host:1", "takes no scheme, user or password"),
        ("user:secret@host:1", "takes no scheme, user or password"),
        ("a,b:1", "is not a host"),
        ("a:1,b:2", "it names several hosts"),
        ("a:1;b:2", "it names several hosts"),
    ],
)
def test_what_is_not_an_endpoint_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_endpoint(text)
    assert "write HOST:PORT, or [ADDRESS]:PORT for IPv6" in str(caught.value)


@given(st.ip_addresses() | st.from_regex(r"[a-z][a-z0-9.-]{0,40}", fullmatch=True), st.integers(1, 65535))
def test_what_is_written_is_read_again(host: Any, port: int) -> None:
    endpoint = Endpoint(str(host), port)
    assert parse_endpoint(str(endpoint)) == endpoint


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_a_usage_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text, 1, lowest_port=0, bare_ipv6=True)
    except UsageError:
        return
    assert endpoint.host
    assert 0 <= endpoint.port <= 65535


# --- names ------------------------------------------------------------------------------------------------------------


def test_addresses_are_distinguished_from_names() -> None:
    assert [net.is_literal(host) for host in ("127.0.0.1", "::1", "fe80::1%lo", "localhost", "1.2.3", "", "a\0b")] == [
        *[True] * 3,
        *[False] * 4,
    ]


def test_a_name_is_resolved_once_per_address_and_an_unknown_one_is_an_error() -> None:
    found = net.resolve("localhost", 4711, SECONDS)
    assert found
    assert all(net.is_loopback(address) and address.sockaddr[1] == 4711 for address in found)
    assert len(set(found)) == len(found)
    with pytest.raises(socket.gaierror):
        net.resolve("no-such-host.invalid", 1, SECONDS)


def test_the_advertised_address_is_the_given_one_or_the_one_that_reaches_the_endpoint() -> None:
    assert advertised_address("given", "whatever") == "given"
    assert advertised_address(None, "127.0.0.1:29400") == "127.0.0.1"
    assert advertised_address(None, "http://[::1]:2379,http://b:2379") in ("::1", "127.0.0.1")
    assert advertised_address(None, "not an endpoint") == "127.0.0.1"


# --- listening --------------------------------------------------------------------------------------------------------


def test_every_listener_has_the_port_of_the_first() -> None:
    listeners = net.listen(net.bind_addresses("localhost", 0, SECONDS))
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        for listener in listeners:
            assert not listener.getblocking()
            host, port = net.reachable_host(listener), listener.getsockname()[1]
            socket.create_connection((host, port), timeout=SECONDS).close()
    finally:
        for listener in listeners:
            listener.close()


def test_a_taken_port_is_an_error_and_leaves_no_listener() -> None:
    (held,) = net.listen([net.Address(socket.AF_INET, ("127.0.0.1", 0))])
    try:
        port = held.getsockname()[1]
        before = open_descriptors()
        with pytest.raises(OSError, match="in use") as caught:
            net.listen(net.bind_addresses("127.0.0.1", port, SECONDS))
        assert caught.value.errno == errno.EADDRINUSE
        assert open_descriptors() <= before
    finally:
        held.close()


def test_an_address_of_ipv4_that_is_written_as_one_of_ipv6_is_one_of_ipv4() -> None:
    (address,) = net.resolve("::ffff:127.0.0.1", 0, SECONDS)
    assert address == net.Address(socket.AF_INET, ("127.0.0.1", 0))
    for listener in net.listen([address]):
        listener.close()


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(OSError) as caught:
        net.listen([net.Address(socket.AF_INET, ("192.0.2.1", 0))])  # TEST-NET-1, RFC 5737
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_the_name_of_this_machine_means_all_its_addresses_where_it_resolves_to_loopback() -> None:
    hosts = {address.sockaddr[0] for address in net.bind_addresses("::", 1, SECONDS)}
    assert hosts == {"::", "0.0.0.0"}
    assert {address.sockaddr[0] for address in net.bind_addresses("127.0.0.1", 1, SECONDS)} == {"127.0.0.1"}


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound_sends", [True, False])
def test_keep_alive_is_set_and_sends_are_bounded_where_asked(bound_sends: bool) -> None:
    with socket.socket() as sock:
        net.set_keep_alive(sock, 4, 2, 5, bound_sends=bound_sends)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        values = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options]
        assert values == [4, 2, 5, 14_000 if bound_sends else 0]


def test_keep_alive_on_a_closed_socket_is_not_an_error() -> None:
    sock = socket.socket()
    sock.close()
    net.set_keep_alive(sock)
    net.set_linear_retransmission(sock)


@pytest.mark.skipif(sys.platform != "linux", reason="they are options of Linux")
def test_lost_data_is_sent_again_at_even_intervals_also_by_what_a_listener_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        net.set_linear_retransmission(listener)
        net.set_linear_retransmission(sock)
        sock.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            thin_linear_timeouts = 16  # linux/tcp.h
            assert [each.getsockopt(socket.IPPROTO_TCP, thin_linear_timeouts) for each in (sock, accepted)] == [1, 1]


class Owner:
    """Owns one end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def close_after_fork(self) -> None:
        self.sock.close()


def test_a_forked_child_gives_up_its_copies_while_the_parent_keeps_its_own() -> None:
    here, there = socket.socketpair()
    there.settimeout(SECONDS)
    owner = Owner(here)
    net.close_in_children(owner)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        here.sendall(b"x")
        assert there.recv(1) == b"x"
        here.close()
        assert there.recv(1) == b"", "the child has no copy that keeps the connection open"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there.close()


def test_resolving_leaves_no_thread_behind_in_time() -> None:
    before = set(threading.enumerate())
    net.resolve("127.0.0.1", 1, SECONDS)
    assert {thread for thread in threading.enumerate() if thread not in before and not thread.daemon} == set()
