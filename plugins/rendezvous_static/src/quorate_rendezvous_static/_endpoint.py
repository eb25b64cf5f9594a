"""Endpoints: from ``host:port`` to addresses, within a deadline.

What does not live here: connecting (``_link``) and listening (``_listen``).
"""

from __future__ import annotations

import socket
import threading
from typing import Any, NamedTuple, final

from quorate.errors import UsageError

__all__ = ["Address", "is_literal", "is_loopback", "is_loopback_name", "parse_endpoint", "resolve", "spell"]


@final
class Address(NamedTuple):
    """One address to bind or connect to; ``sockaddr`` is what the family's socket calls take."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return spell(self.sockaddr[0], self.sockaddr[1])


def spell(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_endpoint(endpoint: str, default_port: int | None = None) -> tuple[str, int]:
    """Return host and port of ``host:port``, ``[v6]:port`` or, given a default port, of a host alone.

    Raises:
        UsageError: there is no host, no port, or an IPv6 address without brackets.
    """
    text = endpoint.strip()
    example = "write HOST:PORT, or [ADDRESS]:PORT for IPv6 (--rdzv-endpoint)"
    if not text:
        raise UsageError(f"the rendezvous endpoint is empty; {example}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"the rendezvous endpoint {endpoint!r} has unbalanced brackets; {example}")
        port_text = rest[1:]
    else:
        if text.count(":") > 1:
            raise UsageError(f"the IPv6 address in the rendezvous endpoint {endpoint!r} needs brackets; {example}")
        host, _, port_text = text.partition(":")
    if not host:
        raise UsageError(f"the rendezvous endpoint {endpoint!r} has no host; {example}")
    if not port_text and default_port is not None:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
        raise UsageError(f"the rendezvous endpoint {endpoint!r} has no port from 1 to 65535; {example}")
    return host, int(port_text)


def resolve(host: str, port: int, timeout: float) -> list[Address]:
    """Return the addresses of ``host`` in the resolver's order, each once.

    A name is looked up on a thread of its own, because the system's resolver has no deadline: a thread that comes
    too late ends by itself when the resolver gives up.

    Raises:
        OSError: the name is unknown, or the resolver did not answer within ``timeout`` seconds.
    """
    if is_literal(host):
        return _look_up(host, port)
    answer: list[list[Address] | OSError] = []
    done = threading.Event()

    def work() -> None:
        try:
            answer.append(_look_up(host, port))
        except OSError as error:
            answer.append(error)
        except UnicodeError as error:
            answer.append(OSError(str(error)))
        finally:
            done.set()

    threading.Thread(target=work, name=f"quorate-resolve-{host}", daemon=True).start()
    if not done.wait(timeout):
        raise OSError(f"the name {host!r} was not resolved within {timeout:.1f} s")
    result = answer[0]
    if isinstance(result, OSError):
        raise result
    return result


def _look_up(host: str, port: int) -> list[Address]:
    # For a text Python imports the codec of IDNA, which takes a few milliseconds, and which few names need.
    name = host.encode() if host.isascii() else host
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))


def is_literal(host: str) -> bool:
    """Return whether ``host`` is an address and no name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def is_loopback(address: Address) -> bool:
    """Return whether only this machine can reach ``address``."""
    host = str(address.sockaddr[0])
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def is_loopback_name(host: str) -> bool:
    """Return whether ``host`` means this machine alone, on whichever machine it is said."""
    name = host.lower()
    if name.startswith("127.") or name == "::1" or name.endswith(".localhost"):
        return True
    return name.split(".")[0] in ("localhost", "localhost6", "ip6-localhost", "ip6-loopback")
