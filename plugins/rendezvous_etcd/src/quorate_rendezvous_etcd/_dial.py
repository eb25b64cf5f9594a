"""Connecting to a member within a deadline, for both backends.

What does not live here: TLS and what is sent over the connection (:mod:`._v3.transport`, :mod:`._v2.transport`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from quorate.clock import monotonic, seconds_until
from quorate.net import Endpoint, resolve, set_linear_retransmission

_LONGEST_DESCRIPTION = 1000


def dial(
    endpoint: Endpoint,
    deadline: float,
    register: Callable[[socket.socket], None],
    drop: Callable[[socket.socket], None],
    secure: Callable[[socket.socket], socket.socket] = lambda sock: sock,
) -> socket.socket:
    """Connect to the first address of ``endpoint`` that answers by ``deadline`` (monotonic seconds).

    Arguments:
        register: called with each socket before it connects, so that another thread can shut it down.
        drop: called with each socket whose connection failed; it closes the socket.
        secure: called with a connected socket; returns the socket to use, such as one with TLS over it.

    Raises:
        OSError: no address answers in time; a TimeoutError where the last one did not answer at all.
    """
    try:
        addresses = resolve(endpoint.host, endpoint.port, max(0.0, deadline - monotonic()))
    except OSError as error:
        raise OSError(f"the name {endpoint.host!r} cannot be resolved: {describe(error)}") from None
    problem: OSError = TimeoutError("no time was left")
    for index, address in enumerate(addresses):
        # An address that does not answer must leave time for the others.
        share = seconds_until(deadline) / (len(addresses) - index)
        if share <= 0:
            break
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            register(sock)
            sock.settimeout(share)
            sock.connect(address.sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_linear_retransmission(sock)
            return secure(sock)
        except TimeoutError:
            drop(sock)
            problem = TimeoutError("the connection was not made in time")
        except OSError as error:
            drop(sock)
            problem = error
        except BaseException:
            drop(sock)
            raise
    raise problem


def describe(error: BaseException) -> str:
    """Return an error's text, such as ``Connection refused``, on one line."""
    text = (getattr(error, "strerror", None) if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:_LONGEST_DESCRIPTION] or type(error).__name__
