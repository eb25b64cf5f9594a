"""Endpoints, names and sockets: the network helpers of the core and of its plugins.

What does not live here: protocols (:mod:`quorate.rendezvous`) and what is listened for.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol, final

from attrs import frozen

from .errors import UsageError
from .forks import no_fork
from .text import without_passwords

__all__ = [
    "NOT_LOCAL_ERRNOS",
    "Address",
    "Endpoint",
    "ForkAware",
    "bind_addresses",
    "close_in_children",
    "format_endpoint",
    "host_alone",
    "host_name",
    "is_literal",
    "is_local_name",
    "is_loopback",
    "listen",
    "named_endpoints",
    "parse_endpoint",
    "reachable_host",
    "resolve",
    "set_keep_alive",
    "set_linear_retransmission",
    "shut_down",
    "source_towards",
]

_EXAMPLE = "write HOST:PORT, or [ADDRESS]:PORT for IPv6 (--rdzv-endpoint)"
_BACKLOG = 4096
_LOOPBACK_6, _MAPPED = bytes(15) + b"\1", bytes(10) + b"\xff\xff"
_LOCAL_NAMES = frozenset({"localhost", "localhost6", "ip6-localhost", "ip6-loopback"})
#: What binding an address that is not one of this machine fails with (EINVAL: link-local, without its interface).
NOT_LOCAL_ERRNOS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EINVAL})


# --- endpoints ------------------------------------------------------------------------------------------------------


@final
@frozen
class Endpoint:
    """A host (a name or an address, without brackets) and a port; ``str()`` writes it as people do."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_endpoint(self.host, self.port)


_MOST_PORT_DIGITS = 5
_NOT_IN_A_HOST = re.compile(r"[\s/,@?#]")


def format_endpoint(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_endpoint(
    text: str, default_port: int | None = None, *, lowest_port: int = 1, bare_ipv6: bool = False
) -> Endpoint:
    """Return the endpoint that ``text`` names: ``host:port`` or ``[ipv6]:port``.

    Arguments:
        text: what a person has written; spaces around it are ignored.
        default_port: the port of a host without one; ``None``: a port is required.
        lowest_port: 0 where port 0 ("any free port") makes sense.
        bare_ipv6: take an IPv6 address without brackets for a host without a port.  Whether its last group was meant
            to be a port is unknown, so it is refused otherwise.

    Raises:
        UsageError: the text is not an endpoint; the message says why and what to write.
    """
    entry = text.strip()
    if not entry:
        raise UsageError(f"the rendezvous endpoint is empty; {_EXAMPLE}")
    if "://" in entry or "@" in entry:
        raise _malformed(text, "it takes no scheme, user or password")
    if entry.startswith("["):
        host, bracket, rest = entry[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _malformed(text, "its brackets do not match")
        colon, port_text = rest[:1], rest[1:]
        if ":" not in host:
            raise _malformed(text, "only an IPv6 address is written in brackets")
    elif entry.count(":") > 1:
        if "," in entry or ";" in entry:
            raise _malformed(text, "it names several hosts, and there can be one")
        if not (bare_ipv6 and is_literal(entry)):
            raise _malformed(text, "an IPv6 address needs brackets")
        host, colon, port_text = entry, "", ""
    else:
        host, colon, port_text = entry.partition(":")
    if not host or _NOT_IN_A_HOST.search(host):
        raise _malformed(text, "it has no host" if not host else f"{host!r} is not a host")
    if not colon and default_port is not None:
        return Endpoint(host, default_port)
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= _MOST_PORT_DIGITS
    if not (is_number and lowest_port <= int(port_text) <= 65535):
        raise _malformed(text, f"it has no port from {lowest_port} to 65535")
    return Endpoint(host, int(port_text))


def named_endpoints(text: str) -> list[Endpoint]:
    """Return the endpoints that are named for any backend, without schemes, users and paths; port 0: none is given."""
    found = []
    for entry in text.split(","):
        with suppress(UsageError):
            place = entry.rpartition("://")[2].rpartition("@")[2].partition("/")[0]
            found.append(parse_endpoint(place, 0, lowest_port=0, bare_ipv6=True))
    return found


def host_alone(text: str) -> str:
    """Return the host that ``text`` names, without spaces and brackets; ``""`` where it is not a host alone."""
    try:
        found = parse_endpoint(text, 0, lowest_port=0, bare_ipv6=True)
    except UsageError:
        return ""
    return "" if found.port else found.host


def _malformed(text: str, problem: str) -> UsageError:
    return UsageError(f"the rendezvous endpoint {without_passwords(text)!r} cannot be used: {problem}; {_EXAMPLE}")


# --- names and addresses --------------------------------------------------------------------------------------------


@final
@frozen
class Address:
    """One address to bind or to connect to; ``sockaddr`` is what the socket calls of the family take."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The numeric address as text, with the interface of a link-local one (``fe80::1%2``)."""
        host = str(self.sockaddr[0])
        scope = self.sockaddr[3] if len(self.sockaddr) == 4 else 0
        return f"{host}%{scope}" if scope and "%" not in host else host

    def with_port(self, port: int) -> Address:
        """Return the same address with another port."""
        return Address(self.family, (self.sockaddr[0], port, *self.sockaddr[2:]))

    def __str__(self) -> str:
        return format_endpoint(self.host, self.sockaddr[1])


def host_name() -> str:
    """Return this host's name, for people."""
    return os.fsencode(os.uname().nodename).decode("utf-8", "replace")


def is_literal(host: str) -> bool:
    """Return whether ``host`` is an address rather than a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def is_local_name(host: str) -> bool:
    """Return whether ``host`` (a name or an address) means this machine on every machine, as ``localhost`` does."""
    name = host.lower().rstrip(".")
    if name.endswith(".localhost") or name.split(".")[0] in _LOCAL_NAMES:
        return True
    with suppress(OSError, ValueError):
        return socket.inet_aton(name)[0] == 127  # 127.1 and 0x7f000001 are too
    with suppress(OSError, ValueError):
        packed = socket.inet_pton(socket.AF_INET6, name.partition("%")[0])
        return packed == _LOOPBACK_6 or packed.startswith(_MAPPED + b"\x7f")
    return False


def is_loopback(address: Address) -> bool:
    """Return whether only this machine can reach ``address``."""
    host = str(address.sockaddr[0])
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def resolve(host: str, port: int, timeout_seconds: float) -> list[Address]:
    """Return the TCP addresses of ``host`` in the resolver's order, each once.

    A name is looked up on a thread of its own, because the system's resolver has no deadline.  A thread that is late
    ends by itself when the resolver gives up; until then, all callers wait for that one.

    Raises:
        OSError: the name is unknown, or the resolver did not answer in time.
    """
    if is_literal(host):
        return _look_up(host, port)
    lookup = _lookups.get((host, port))
    if lookup is None or lookup.done.is_set():
        lookup = _lookups[host, port] = _Lookup(host, port)
    if not lookup.done.wait(min(timeout_seconds, threading.TIMEOUT_MAX)):
        raise OSError(f"the name {host!r} was not resolved within {timeout_seconds:.1f} s")
    _lookups.pop((host, port), None)
    if isinstance(lookup.result, OSError):
        raise lookup.result
    return lookup.result


@final
class _Lookup:
    """A lookup on a thread of its own, for all callers that want the same endpoint at the same time."""

    def __init__(self, host: str, port: int) -> None:
        self.result: list[Address] | OSError = []
        self.done = threading.Event()
        threading.Thread(target=self._run, args=(host, port), name=f"quorate-resolve-{host}", daemon=True).start()

    def _run(self, host: str, port: int) -> None:
        try:
            self.result = _look_up(host, port)
        except OSError as error:
            self.result = error
        except Exception as error:  # the thread must not end without an answer
            self.result = OSError(f"{host!r} cannot be resolved: {error}")
        finally:
            self.done.set()


#: A fork waits so long for a lookup: one that takes longer waits for a server, and holds no lock of the resolver.
_LOCKED_SECONDS = 0.5

# A resolver that does not answer must not collect a thread for each attempt.
_lookups: dict[tuple[str, int], _Lookup] = {}


def _look_up(host: str, port: int) -> list[Address]:
    # Python imports the codec of IDNA for a str (milliseconds); a name in ASCII does not need it.
    name = host.encode() if host.isascii() else host
    try:
        with no_fork(_LOCKED_SECONDS):
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except ValueError as error:  # a label that is too long, or empty; a NUL
        raise OSError(f"{host!r} is not a host name: {error}") from error
    return list(dict.fromkeys(_unmapped(family, sockaddr) for family, _, _, _, sockaddr in found))


def _unmapped(family: int, sockaddr: tuple[Any, ...]) -> Address:
    """Return an address; one of IPv4 written as IPv6's, which a socket for IPv6 alone cannot bind, as IPv4's."""
    host = str(sockaddr[0])
    if family == socket.AF_INET6 and host.startswith("::ffff:") and "." in host:
        return Address(socket.AF_INET, (host.removeprefix("::ffff:"), sockaddr[1]))
    return Address(family, sockaddr)


def source_towards(address: Address) -> str:
    """Return the address from which this machine would send to ``address``, ``""`` where it cannot.  Sends nothing."""
    with socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address.sockaddr)
        except OSError:
            return ""
        return str(probe.getsockname()[0]).partition("%")[0]


# --- listening ------------------------------------------------------------------------------------------------------


def bind_addresses(host: str, port: int, timeout_seconds: float) -> list[Address]:
    """Return what a server for the endpoint should bind: the endpoint's own addresses and no others.

    One exception: many systems resolve a machine's own name to a loopback address, which no other machine can reach.
    Every address of the machine is meant then.

    Raises:
        OSError: the name is unknown, or was not resolved in time.
    """
    everywhere = [Address(socket.AF_INET6, ("::", port, 0, 0)), Address(socket.AF_INET, ("0.0.0.0", port))]
    found = resolve(host, port, timeout_seconds)
    if host == "::":
        return everywhere
    if is_literal(host) or is_local_name(host):
        return found
    return everywhere if all(is_loopback(address) for address in found) else found


def listen(addresses: Iterable[Address], *, one_socket: bool = False) -> list[socket.socket]:
    """Listen on all of ``addresses`` that this machine has, all with the port of the first.

    Each family has a non-blocking socket of its own.  With ``one_socket`` (for servers that take a single descriptor)
    only the first address that this machine has is listened on, and ``::`` takes IPv4 connections too.

    Raises:
        OSError: the port is taken, or no address belongs to this machine.
    """
    listeners: list[socket.socket] = []
    skipped: OSError | None = None
    try:
        for address in addresses:
            if listeners:
                address = address.with_port(listeners[0].getsockname()[1])
            try:
                listeners.append(_listen_on(address, v6_only=not one_socket))
                if one_socket:
                    break
            except OSError as error:
                if error.errno not in NOT_LOCAL_ERRNOS:
                    raise
                skipped = error
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise skipped or OSError(errno.EADDRNOTAVAIL, "the name has no address")
    return listeners


def _listen_on(address: Address, v6_only: bool) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            # Set in both cases: the default is the system's.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        sock.bind(address.sockaddr)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def reachable_host(listener: socket.socket) -> str:
    """Return the address at which this machine itself reaches ``listener``."""
    host = Address(listener.family, listener.getsockname()).host
    return {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host)


# --- connections ----------------------------------------------------------------------------------------------------

#: Options of Linux that Python has no names for, and their values (``linux/tcp.h``).
_LINEAR_RETRANSMISSION = (
    (16, 1),  # TCP_THIN_LINEAR_TIMEOUTS
    (44, 1000),  # TCP_RTO_MAX_MS, since Linux 6.15; the smallest
)


def set_keep_alive(
    sock: socket.socket, idle_seconds: int = 5, interval_seconds: int = 3, probes: int = 3, *, bound_sends: bool = True
) -> None:
    """Have the kernel notice a peer that vanished without closing the connection.

    It notices after about ``idle_seconds + probes * interval_seconds`` of silence; with ``bound_sends`` the same bound
    holds for data that is not acknowledged.  An option that this system lacks is left out.
    """
    silence_milliseconds = (idle_seconds + interval_seconds * probes) * 1000
    options = [
        ("TCP_KEEPIDLE", idle_seconds),
        ("TCP_KEEPINTVL", interval_seconds),
        ("TCP_KEEPCNT", probes),
        *([("TCP_USER_TIMEOUT", silence_milliseconds)] if bound_sends else []),
    ]
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options:
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # the connection works without it


def set_linear_retransmission(sock: socket.socket) -> None:
    """Have the kernel send lost data again at even intervals; connections that a listener accepts inherit it.

    By default each try waits twice as long as the one before.  On a link with a round trip of 200 ms the second or
    third try then comes seconds after the first, which is as long as a lease.  Only on Linux; the kernel does so for
    connections with few packets under way, which those that carry heartbeats are.
    """
    if sys.platform == "linux":
        for option, value in _LINEAR_RETRANSMISSION:
            with suppress(OSError):  # an older kernel, or the socket is closed: the connection works without it
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def shut_down(sock: socket.socket) -> None:
    """End both directions of a connection, so that another thread that waits on it returns; never blocks."""
    with suppress(OSError):  # it is broken, closed, or not connected yet
        # Not the method of ssl's class, which would drop its state under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class ForkAware(Protocol):
    """Owns connections that a forked child must not use."""

    def close_after_fork(self) -> Any:
        """Close this process's copies without sending anything to the other side; takes no lock.

        What is returned is kept alive in the child until it ends, for objects that must never be torn down there.
        """
        ...


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_kept_in_child: list[Any] = []


def close_in_children(owner: ForkAware) -> None:
    """Have every child that this process forks from now on call ``owner.close_after_fork()``.

    A child that held the copies open would hide the death of its parent from everyone on the other side.
    """
    _fork_aware.add(owner)


def _close_all() -> None:
    for owner in list(_fork_aware):
        try:
            _kept_in_child.append(owner.close_after_fork())
        except Exception:  # one that fails must not leave the others open
            _kept_in_child.append(owner)
    _fork_aware.clear()
    _lookups.clear()  # their threads do not exist here


os.register_at_fork(after_in_child=_close_all)
