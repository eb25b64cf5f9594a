"""Which address do others reach this node at, and how are ``host:port`` endpoints written."""

from __future__ import annotations

import os

from ..errors import UsageError

__all__ = ["advertised_address", "host_name", "parse_endpoint"]


def parse_endpoint(endpoint: str, default_port: int | None = None) -> tuple[str, int]:
    """Return ``(host, port)`` of ``host:port``, ``[v6]:port``, ``host`` or ``[v6]`` (then ``default_port``).

    Raises:
        UsageError: anything else.
    """
    text = endpoint.strip()
    host, port_text = text, ""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise _malformed(endpoint)
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    if not host:
        raise _malformed(endpoint)
    if not port_text:
        if default_port is None or text.endswith(":"):
            raise _malformed(endpoint)
        return host, default_port
    if not port_text.isdecimal() or not 0 <= int(port_text) <= 65535:
        raise _malformed(endpoint)
    return host, int(port_text)


def _malformed(endpoint: str) -> UsageError:
    return UsageError(
        f"the endpoint {endpoint!r} is not HOST:PORT (for IPv6: [ADDRESS]:PORT, port 0 to 65535); set --rdzv-endpoint"
    )


def host_name() -> str:
    """Return this host's name, for people."""
    return os.uname().nodename


def advertised_address(local_addr: str | None, endpoint: str) -> str:
    """Return the address at which the other nodes reach this one.

    ``local_addr`` if given; else the source address of the route to ``endpoint``; else the loopback address.
    Nothing is sent.
    """
    if local_addr:
        return local_addr
    import socket  # which a job of one node does without

    try:
        host, port = parse_endpoint(endpoint.split(",")[0], 1)
        # For a text Python imports the codec of IDNA, which takes a few milliseconds, and which few names need.
        name = host.encode() if host.isascii() else host
        for family, kind, protocol, _, address in socket.getaddrinfo(name, port or 1, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                try:
                    probe.connect(address)
                except OSError:
                    continue
                source = probe.getsockname()[0]
                assert isinstance(source, str)
                return source.partition("%")[0]
    except (OSError, UsageError, UnicodeError):  # UnicodeError: no name of a host, such as a long path
        pass
    return "127.0.0.1"
