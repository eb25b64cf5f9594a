"""Socket options that both ends of a connection use."""

from __future__ import annotations

import socket

__all__ = ["tune"]

#: A host that went silent (power, network) is noticed after about 5 + 3 * 3 seconds.
_IDLE_SECONDS = 5
_INTERVAL_SECONDS = 3
_PROBES = 3


def tune(sock: socket.socket) -> None:
    """Send small frames at once, and have the system notice a silent other side."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    silence = (_IDLE_SECONDS + _INTERVAL_SECONDS * _PROBES) * 1000
    # Not every system has all of them; the rest still works where one is missing.
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_SECONDS),
        ("TCP_KEEPINTVL", _INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", silence),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
