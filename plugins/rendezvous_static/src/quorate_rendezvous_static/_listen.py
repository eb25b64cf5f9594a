"""Where a server listens: the endpoint's own addresses, each with a socket of its own.

What does not live here: what is done with the connections (``_server``).
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from ._endpoint import Address, is_literal, is_loopback, is_loopback_name, resolve

__all__ = ["bind_addresses", "listen", "reachable_host"]

_BACKLOG = 4096
_NOT_MINE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def bind_addresses(host: str, port: int, timeout: float) -> list[Address]:
    """Return what a server for the endpoint should bind: the endpoint's own addresses and no others.

    One exception: many systems resolve a machine's own name to a loopback address, which no other machine can reach
    and which says nothing about the address that they will use.  Then every address of the machine is meant.

    Raises:
        OSError: the name is unknown, or was not resolved within ``timeout`` seconds.
    """
    everywhere = [Address(socket.AF_INET6, ("::", port, 0, 0)), Address(socket.AF_INET, ("0.0.0.0", port))]
    found = resolve(host, port, timeout)
    if host == "::":
        return everywhere
    if is_literal(host) or is_loopback_name(host):
        return found
    return everywhere if all(is_loopback(address) for address in found) else found


def listen(addresses: list[Address]) -> list[socket.socket]:
    """Listen on all of ``addresses`` that this machine has, all with the port of the first."""
    listeners: list[socket.socket] = []
    skipped: OSError | None = None
    try:
        for address in addresses:
            sockaddr: tuple[Any, ...] = address.sockaddr
            if listeners:
                sockaddr = (sockaddr[0], listeners[0].getsockname()[1], *sockaddr[2:])
            try:
                listeners.append(_listen_on(address.family, sockaddr))
            except OSError as error:
                if error.errno not in _NOT_MINE:
                    raise
                skipped = error
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise skipped or OSError(errno.EADDRNOTAVAIL, "the name has no address")
    return listeners


def _listen_on(family: int, sockaddr: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Each family has a listener of its own, whatever the system's default is.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def reachable_host(listener: socket.socket) -> str:
    """Return the address at which this machine itself reaches ``listener``."""
    host = str(listener.getsockname()[0])
    return {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host)
