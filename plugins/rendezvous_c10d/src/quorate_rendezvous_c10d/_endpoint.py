"""Plain sockets: listening on the endpoint's port for torch, and finding out whether the host of the store answers.

Both are done before torch sees the endpoint.  Binding first lets the kernel decide, without a race, which node is the
host.  Connecting first keeps torch's own retries, and what it logs about them, out of sight.

What does not live here: endpoints, names and listeners in general (:mod:`quorate.net`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import final

from attrs import frozen

from quorate.clock import monotonic
from quorate.net import NOT_LOCAL_ERRNOS, Address, bind_addresses, listen, reachable_host, resolve

#: What :func:`find_answering` says of an address without a listener.
REFUSED = "connection refused"
_ATTEMPT_TIMEOUT_SECONDS = 5.0


class NotLocalError(Exception):
    """None of the endpoint's addresses belongs to this machine."""


class PortTakenError(Exception):
    """The address belongs to this machine, and something listens on the port already."""


@final
@frozen
class Listening:
    """A listening socket and the address at which this machine reaches it.

    ``is_elsewhere`` says that the endpoint's own address is not one of this machine.
    """

    sock: socket.socket
    address: str
    port: int
    is_elsewhere: bool = False


def addresses_to_listen_on(host: str, port: int, timeout_seconds: float) -> list[Address]:
    """Return where a host at ``host`` listens: on the first of these that it has.  Raises OSError for a bad name."""
    found = bind_addresses(host, port, timeout_seconds)
    # A dual-stack socket reports IPv4 peers as ``::ffff:a.b.c.d``.  torch makes a reverse look-up of each peer, and few
    # resolvers answer one of those at once.
    return found if host == "::" else sorted(found, key=lambda address: address.host == "::")


def listen_on(addresses: Sequence[Address], port: int, *, any_address: bool = False) -> Listening:
    """Listen on the first of ``addresses`` that belongs to this machine, with one blocking socket for torch.

    With ``any_address`` a host whose addresses are not local (it sits behind a translated address) listens on ``port``
    (0: any free port) of all of its own.

    Raises:
        NotLocalError: no address is local, and ``any_address`` is false.
        PortTakenError: one is, and the port is in use.
        OSError: anything else (no permission for a port below 1024, no descriptors left).
    """
    everywhere = [Address(socket.AF_INET, ("0.0.0.0", port)), Address(socket.AF_INET6, ("::", port, 0, 0))]
    for candidates, is_elsewhere in ((addresses, False), (everywhere if any_address else [], True)):
        try:
            (sock,) = listen(candidates, one_socket=True)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError from error
            if error.errno not in NOT_LOCAL_ERRNOS:
                raise
            continue
        sock.setblocking(True)
        return Listening(sock, reachable_host(sock), sock.getsockname()[1], is_elsewhere)
    raise NotLocalError


def find_answering(host: str, port: int, deadline: float, settle_seconds: float = 0.0) -> tuple[str | None, list[str]]:
    """Try every address of ``host`` once, until one accepts a connection or ``deadline`` (monotonic seconds) is over.

    A process that is dying may still accept, and drop the connection a moment later: ``settle_seconds`` is how long
    it must hold to count.  Returns the numeric address that did, or ``None``, and one sentence for each that did not.
    """
    tried: list[str] = []
    try:
        addresses = resolve(host, port, max(0.1, deadline - monotonic()))
    except OSError as error:
        return None, [f"the name {host!r} does not resolve ({error.strerror or error})"]
    for address in addresses:
        left = deadline - monotonic()
        if left <= 0 and tried:
            break
        problem = _try_connect(address, min(max(left, 0.1), _ATTEMPT_TIMEOUT_SECONDS), settle_seconds)
        if problem is None:
            return address.host, tried
        tried.append(f"{address}: {problem}")
    return None, tried


def _try_connect(address: Address, timeout: float, settle_seconds: float) -> str | None:
    try:
        with socket.socket(address.family, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(address.sockaddr)
            if sock.getsockname() == sock.getpeername():
                # The kernel has given this socket the very port that it connects to, and connected it to itself.
                return REFUSED
            if settle_seconds > 0 and _drops(sock, settle_seconds):
                return "it accepts connections and drops them"
    except ConnectionRefusedError:
        return REFUSED
    except TimeoutError:
        return f"no answer within {timeout:.1f} s"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _drops(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        return not sock.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
