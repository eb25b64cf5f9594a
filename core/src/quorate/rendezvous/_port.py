"""``Bootstrap`` holds a round's ``MASTER_PORT``; ``PortReservation``, the default, reserves it for the worker.

The socket is bound and does not listen.  While nodes gather nobody else can bind the port, whatever options they set.
:meth:`PortReservation.activate` then sets ``SO_REUSEADDR``: the worker, whose store sets it too, can bind the port
and listen on it, and the system still gives it to no program that asks for any port.  (Binding, closing and hoping is
a race.)
"""

from __future__ import annotations

import socket
from typing import Protocol, final

__all__ = ["Bootstrap", "PortReservation"]


class Bootstrap(Protocol):
    """Holds the port that becomes ``MASTER_PORT`` if this node is the first of a round.

    One is made per join.  ``reserve`` is called before the port is published, ``activate`` only on the round's first
    node after the seal and before its workers start, ``release`` always, when the round is over.
    """

    #: Whether a store listens on the port after ``activate`` (workers are then all clients of it).
    shares_store: bool

    def reserve(self, address: str) -> int:
        """Take a free port on ``address`` and hold it; returns the port."""
        ...

    def activate(self) -> None:
        """This node is the round's first: make the port usable by its workers."""
        ...

    def release(self) -> None:
        """Give the port back.  May be called twice."""
        ...


@final
class PortReservation:
    """Implements :class:`quorate.rendezvous.Bootstrap` without a store."""

    shares_store = False

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def reserve(self, address: str) -> int:
        """Reserve a free port on all of this host's addresses, so that no other socket can bind it; returns it.

        Raises:
            OSError: no port is free.
        """
        self.release()
        if socket.has_ipv6:
            try:
                self._socket = self._bind(socket.AF_INET6, "::")
            except OSError:
                self._socket = None
        if self._socket is None:
            self._socket = self._bind(socket.AF_INET, "")
        port = self._socket.getsockname()[1]
        assert isinstance(port, int)
        return port

    @staticmethod
    def _bind(family: int, address: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((address, 0))
        except OSError:
            sock.close()
            raise
        return sock

    def activate(self) -> None:
        """Let the worker bind the port, which it does itself.  Nothing is done without a reserved port."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def release(self) -> None:
        """Give the port back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
