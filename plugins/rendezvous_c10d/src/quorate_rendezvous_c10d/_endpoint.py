"""Plain sockets: taking the endpoint's port, or finding out that its host can be reached.

Both are done by ourselves, before torch sees the endpoint: binding first makes "who is the host" a question that the
kernel answers without a race, and probing first keeps torch's own connection retries (and their log) out of sight.
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple, final

from quorate.clock import monotonic

from ._settings import format_endpoint

__all__ = ["REFUSED", "Listening", "NotLocalError", "PortTakenError", "find_answering", "listen_on", "resolve", "widen"]

#: What :func:`find_answering` says of an address where nothing listens.
REFUSED = "connection refused"
_BACKLOG = 4096
_NOT_LOCAL = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL})
_Address = tuple[socket.AddressFamily, str]


class NotLocalError(Exception):
    """None of the endpoint's addresses belongs to this machine."""


class PortTakenError(Exception):
    """The address is ours, and something listens on the port already."""


@final
class Listening(NamedTuple):
    """A listening socket and the address at which this machine reaches it.

    ``is_elsewhere`` tells that the endpoint's own address is not one of this machine.
    """

    sock: socket.socket
    address: str
    port: int
    is_elsewhere: bool = False


def resolve(host: str, port: int) -> list[_Address]:
    """Return the addresses of ``host``, each once, in the resolver's order.

    Raises:
        OSError: the name is unknown.
    """
    found: list[_Address] = []
    for family, _, _, _, where in socket.getaddrinfo(_plain(host), port, type=socket.SOCK_STREAM):
        if family in (socket.AF_INET, socket.AF_INET6):
            entry = (family, _with_scope(where))
            if entry not in found:
                found.append(entry)
    return found


def _plain(host: str) -> str | bytes:
    """Return a name that needs no IDNA as bytes: for a text Python imports that codec, for a few milliseconds."""
    return host.encode() if host.isascii() else host


def _with_scope(where: tuple[object, ...]) -> str:
    address = str(where[0])
    if len(where) == 4 and where[3] and "%" not in address:
        return f"{address}%{where[3]}"
    return address


def widen(host: str, addresses: list[_Address]) -> list[_Address]:
    """Return where to listen for ``host``: its ``addresses``, or all of this machine's where those mislead.

    Many machines' ``/etc/hosts`` gives their own name a loopback address.  Others know that name by another one.
    """
    named = {"localhost", "ip6-localhost", *(address for _, address in addresses)}
    if not addresses or host in named or host.endswith((".localhost", ".localdomain")):
        return addresses
    if all(address == "::1" or address.startswith("127.") for _, address in addresses):
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    return addresses


def listen_on(addresses: list[_Address], port: int, *, any_address: bool = False) -> Listening:
    """Bind the first of ``addresses`` that belongs to this machine and listen on ``port`` (0: any free port).

    A socket on one IPv4 address hands out plain IPv4 peers; a dual-stack socket hands out ``::ffff:a.b.c.d``, whose
    reverse look-up (torch makes one per connection) few resolvers answer at once.  With ``any_address`` a host whose
    addresses are not local (it sits behind a translated address) listens on all of its own.

    Raises:
        NotLocalError: no address is local, and ``any_address`` is false.
        PortTakenError: one is, and the port is in use.
        OSError: anything else (no permission for a port below 1024, no descriptors left).
    """
    for family, address in addresses:
        listening = _listen(family, address, port)
        if listening is not None:
            return listening
    if any_address:
        # A machine may lack either family; IPv4 first, for the reason above.
        for family, address, loopback in (
            (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
            (socket.AF_INET6, "::", "::1"),
        ):
            listening = _listen(family, address, port)
            if listening is not None:
                return Listening(listening.sock, loopback, listening.port, is_elsewhere=True)
    raise NotLocalError


def _listen(family: socket.AddressFamily, address: str, port: int) -> Listening | None:
    try:
        where = socket.getaddrinfo(_plain(address), port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)  # two sockets may be bound to one port; only one of them gets past this line
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError from error
        if error.errno in _NOT_LOCAL:
            return None
        raise
    return Listening(sock, _loopback_of(address), sock.getsockname()[1])


def _loopback_of(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def find_answering(host: str, port: int, deadline: float, settle_seconds: float = 0.0) -> tuple[str | None, list[str]]:
    """Try every address of ``host`` once, until one accepts a connection or ``deadline`` (monotonic seconds) is over.

    A process that is dying may still accept, and drop the connection a moment later: ``settle_seconds`` is how long
    it must hold to count.  Returns the numeric address that did, or ``None``, and one sentence for each that did not.
    """
    tried: list[str] = []
    try:
        addresses = resolve(host, port)
    except OSError as error:
        return None, [f"the name {host!r} does not resolve ({error.strerror or error})"]
    for family, address in addresses:
        left = deadline - monotonic()
        if left <= 0 and tried:
            break
        problem = _try_connect(family, address, port, min(max(left, 0.1), 5.0), settle_seconds)
        if problem is None:
            return address, tried
        tried.append(f"{format_endpoint(address, port)}: {problem}")
    return None, tried


def _try_connect(
    family: socket.AddressFamily, address: str, port: int, timeout: float, settle_seconds: float
) -> str | None:
    try:
        where = socket.getaddrinfo(_plain(address), port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(where)
            if sock.getsockname() == sock.getpeername():
                # The kernel gave us the very port that we look for, and we met ourselves.
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
