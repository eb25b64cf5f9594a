"""What the rendezvous stores need of quorate.net: one listening socket for torch, and children that keep nothing."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from quorate.net import Address, bind_addresses, close_in_children, is_local_name, listen, reachable_host, resolve

DEADLINE_SECONDS = 30.0


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def test_one_socket_listens_on_the_first_address_that_this_machine_has() -> None:
    elsewhere, here, other = (Address(socket.AF_INET, (host, 0)) for host in ("192.0.2.1", "127.0.0.1", "127.0.0.2"))
    (sock,) = listen([elsewhere, here, other], one_socket=True)
    with sock:
        assert reachable_host(sock) == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", sock.getsockname()[1]), DEADLINE_SECONDS)
    with pytest.raises(OSError) as caught:
        listen([elsewhere], one_socket=True)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@needs_ipv6
def test_one_socket_on_all_addresses_takes_both_families() -> None:
    (sock,) = listen(bind_addresses("::", 0, DEADLINE_SECONDS), one_socket=True)
    with sock:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, sock.getsockname()[1]), DEADLINE_SECONDS).close()


def test_a_link_local_address_keeps_its_interface() -> None:
    assert Address(socket.AF_INET6, ("fe80::1", 80, 0, 2)).host == "fe80::1%2"
    assert str(Address(socket.AF_INET6, ("fe80::1%eth0", 80, 0, 2))) == "[fe80::1%eth0]:80"
    assert Address(socket.AF_INET6, ("::1", 80, 0, 0)).host == "::1"
    assert Address(socket.AF_INET, ("127.0.0.1", 80)).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("LOCALHOST.localdomain", True), ("a.localhost", True), ("127.9.9.9", True), ("::1", True)]
    + [("node1", False), ("localhosts", False), ("10.0.0.1", False), ("::", False), ("0.0.0.0", False)]
    + [("127.1", True), ("0x7f000001", True), ("0:0:0:0:0:0:0:1", True), ("::ffff:127.0.0.1", True), ("::1%lo", True)]
    + [("localhost.", True), ("127.example", False), ("::ffff:10.0.0.1", False), ("1", False), ("fd00::1", False)],
)
def test_names_that_mean_this_machine_everywhere(host: str, is_local: bool) -> None:
    assert is_local_name(host) is is_local


@pytest.mark.parametrize("host", ["a\0b", "a" * 300, "a..b"])
def test_what_cannot_be_a_name_is_an_oserror(host: str) -> None:
    with pytest.raises(OSError):
        resolve(host, 1, 1e300)


class _Owner:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def close_after_fork(self) -> None:
        self.sock.close()
        raise OSError("this one always fails")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_owner_that_fails_in_a_child_does_not_keep_the_others_open() -> None:
    owners = [_Owner(socket.socket()) for _ in range(3)]
    for owner in owners:
        close_in_children(owner)
    child = os.fork()
    if child == 0:
        os._exit(sum(owner.sock.fileno() >= 0 for owner in owners))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for owner in owners:
        owner.sock.close()
