"""A reserved port goes to the worker that was given its number, and to no other program.

While nodes gather no socket can bind it, ``SO_REUSEADDR`` or not.  Once it is activated a socket that names the port
and sets ``SO_REUSEADDR``, as servers do, can bind it and listen on it.  A program that asks the system for any port is
never given it.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from quorate import RendezvousStateError, UsageError
from quorate.rendezvous import PortReservation, reserve_master_port

DEADLINE_SECONDS = 30.0
#: Restricts what the system may pick for one socket (Linux 6.3 and later); Python has no name for it.
IP_LOCAL_PORT_RANGE = 51


@pytest.fixture
def reservation() -> Iterator[PortReservation]:
    made = PortReservation()
    yield made
    made.release()
    made.release()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ADDRESSES = [
    (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
    pytest.param(
        socket.AF_INET6, "::", "::1", marks=pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
    ),
]


@pytest.mark.parametrize(("family", "bound", "dialled"), ADDRESSES)
@pytest.mark.parametrize("reuse", [0, 1])
def test_nobody_can_take_the_port_while_the_nodes_gather(
    reservation: PortReservation, family: socket.AddressFamily, bound: str, dialled: str, reuse: int
) -> None:
    port = reservation.reserve("127.0.0.1")
    with socket.socket(family, socket.SOCK_STREAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        with pytest.raises(OSError) as caught:
            other.bind((bound, port))
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(("family", "bound", "dialled"), ADDRESSES)
def test_a_server_can_listen_on_the_port_once_it_is_activated(
    reservation: PortReservation, family: socket.AddressFamily, bound: str, dialled: str
) -> None:
    port = reservation.reserve("127.0.0.1")
    reservation.activate()
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((bound, port))
        server.listen()
        with socket.create_connection((dialled, port), DEADLINE_SECONDS) as client:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"worker")
            assert client.recv(16) == b"worker"
        reservation.release()  # giving it back takes nothing from the server
        socket.create_connection((dialled, port), DEADLINE_SECONDS).close()


@pytest.mark.needs("torch")
def test_torch_can_host_its_store_on_the_port_once_it_is_activated(reservation: PortReservation) -> None:
    from datetime import timedelta

    from torch import distributed

    port = reservation.reserve("127.0.0.1")
    reservation.activate()
    store = distributed.TCPStore(
        "127.0.0.1", port, None, True, timedelta(seconds=DEADLINE_SECONDS), wait_for_workers=False
    )
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_nobody_connects_to_a_port_that_is_only_reserved(reservation: PortReservation) -> None:
    port = reservation.reserve("127.0.0.1")
    reservation.activate()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("reuse", [0, 1])
def test_the_system_never_hands_the_port_out(reservation: PortReservation, reuse: int, activated: bool) -> None:
    port = reservation.reserve("127.0.0.1")
    if activated:
        reservation.activate()

    def pick() -> int:
        """Bind to a port of the system's choice, where the reserved one is all that it may choose from."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", port << 16 | port))
            except OSError:
                pytest.skip("the kernel cannot restrict the choice of a port (Linux 6.3 and later can)")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            sock.bind(("127.0.0.1", 0))
            picked: int = sock.getsockname()[1]
            return picked

    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can restrict the choice of a port")
    with pytest.raises(OSError) as caught:
        pick()
    assert caught.value.errno == errno.EADDRINUSE
    reservation.release()
    assert pick() == port  # the range was right: it was the reservation that kept the port


def test_the_system_never_lets_a_client_call_from_the_port(reservation: PortReservation) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can restrict the choice of a port")
    port = reservation.reserve("127.0.0.1")
    reservation.activate()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        try:
            client.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", port << 16 | port))
        except OSError:
            pytest.skip("the kernel cannot restrict the choice of a port (Linux 6.3 and later can)")
        with pytest.raises(OSError) as caught:
            client.connect(listener.getsockname())
        assert caught.value.errno == errno.EADDRNOTAVAIL


def test_reservations_differ_and_a_new_one_replaces_the_old(reservation: PortReservation) -> None:
    others = [PortReservation() for _ in range(50)]
    ports = {other.reserve("127.0.0.1") for other in others} | {reservation.reserve("127.0.0.1")}
    assert len(ports) == 51
    for other in others:
        other.release()
    first = reservation.reserve("127.0.0.1")
    second = reservation.reserve("127.0.0.1")
    with socket.create_server(("127.0.0.1", first)):  # given back
        pass
    reservation.activate()
    assert not reservation.shares_store
    assert second > 0


# --- a range of ports -------------------------------------------------------------------------------------------------


@pytest.fixture
def ports() -> range:
    """Three ports that nobody uses, outside those that the system hands out."""
    for low in range(20011, 32000, 7):
        reserved = [PortReservation() for _ in range(3)]
        try:
            for port, each in zip(range(low, low + 3), reserved, strict=True):
                each.reserve("", port)
        except OSError:
            continue
        finally:
            for each in reserved:
                each.release()
        return range(low, low + 3)
    pytest.skip("there are no three free ports in a row")


def written(ports: range) -> str:
    return f"{ports[0]}:{ports[-1]}"


def test_ports_are_taken_from_the_range_one_after_the_other_until_it_is_full(ports: range) -> None:
    made = [PortReservation() for _ in range(4)]
    try:
        assert [reserve_master_port(each, "", written(ports)) for each in made[:3]] == list(ports)
        for activated in (False, True):  # one that waits for its worker is not free either
            if activated:
                made[0].activate()
            with pytest.raises(RendezvousStateError, match=rf"none of the ports {ports[0]} to {ports[2]} can be taken"):
                reserve_master_port(made[3], "", written(ports))
        made[1].release()
        assert reserve_master_port(made[3], "", written(ports)) == ports[1]
    finally:
        for each in made:
            each.release()


def test_where_no_socket_can_be_opened_no_port_is_blamed() -> None:
    class Short(PortReservation):  # type: ignore[misc]
        tries = 0

        def reserve(self, address: str, port: int = 0) -> int:
            self.tries += 1
            raise OSError(errno.EMFILE, "Too many open files")

    short = Short()
    with pytest.raises(OSError, match="Too many open files"):
        reserve_master_port(short, "", "1:65535")
    assert short.tries == 1


@pytest.mark.parametrize(("family", "bound", "dialled"), ADDRESSES)
def test_a_port_of_the_range_that_a_program_uses_is_left_out(
    reservation: PortReservation, family: socket.AddressFamily, bound: str, dialled: str, ports: range
) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((bound, ports[0]))
        server.listen()
        assert reserve_master_port(reservation, "", written(ports)) == ports[1]
        one = f"{ports[0]}"
        with pytest.raises(RendezvousStateError, match=rf"the port {one} cannot be taken .*Address already in use"):
            reserve_master_port(reservation, "", one)


def test_a_port_on_which_only_old_connections_are_left_is_taken_again(
    reservation: PortReservation, ports: range
) -> None:
    with socket.create_server(("127.0.0.1", ports[0])) as server:
        client = socket.create_connection(server.getsockname(), DEADLINE_SECONDS)
        accepted, _ = server.accept()
    accepted.close()  # the side that closes first keeps its port busy
    assert client.recv(1) == b""
    client.close()
    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", ports[0]))
    assert reserve_master_port(reservation, "", written(ports)) == ports[0]
    with pytest.raises(RendezvousStateError):
        reserve_master_port(PortReservation(), "", f"{ports[0]}")
    reservation.activate()
    with socket.create_server(("127.0.0.1", ports[0])) as server:
        socket.create_connection(server.getsockname(), DEADLINE_SECONDS).close()


def test_the_port_of_the_rendezvous_is_not_taken(reservation: PortReservation, ports: range) -> None:
    endpoint = f"here:{ports[0]}"
    assert reserve_master_port(reservation, "", written(ports), endpoint) == ports[1]
    with pytest.raises(RendezvousStateError, match=rf"the port {ports[0]} is the one of --rdzv-endpoint"):
        reserve_master_port(reservation, "", str(ports[0]), endpoint)


@pytest.mark.parametrize(
    "text", ["", ":", "a:b", "0:5", "9:8", "1:65536", "1:2:3", "-1:5", "1:", ":5", "٣:٤", "1" * 99]
)
def test_what_is_not_a_range_is_refused(text: str, reservation: PortReservation) -> None:
    with pytest.raises(UsageError, match=r"must be LOW:HIGH.*such as 29500:29509 \(--master-port-range\)"):
        reserve_master_port(reservation, "", text)
