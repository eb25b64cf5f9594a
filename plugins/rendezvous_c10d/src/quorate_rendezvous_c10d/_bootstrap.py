"""The bootstrap of ``c10d``: workers meet in a TCPStore that their first node's agent hosts, a fresh one per round.

The port listens from before it is published, so no other program can take it.  A fresh server has no keys of an earlier
round.
"""

from __future__ import annotations

import errno
import os
from typing import final

from quorate.errors import StoreUnavailableError
from quorate.net import Address, format_endpoint

from ._connection import Connection, host
from ._endpoint import Listening, PortTakenError, addresses_to_listen_on, listen_on

_OPERATION_TIMEOUT_SECONDS = 30.0
_RESOLVE_TIMEOUT_SECONDS = 10.0


@final
class TCPStoreBootstrap:
    """Implements :class:`quorate.rendezvous.Bootstrap` with a store for the workers."""

    shares_store = True

    def __init__(self) -> None:
        self._listening: Listening | None = None
        self._connection: Connection | None = None

    def reserve(self, address: str, port: int = 0) -> int:
        """Listen on ``port`` (0: a free one) of ``address``, or of all addresses where it is not one of this machine.

        Raises:
            OSError: no port is free, or ``port`` is not.
        """
        self.release()
        addresses: list[Address] = []
        if address:
            try:
                addresses = addresses_to_listen_on(address, port, _RESOLVE_TIMEOUT_SECONDS)
            except OSError:
                addresses = []  # other nodes may know the name; this one listens everywhere
        try:
            self._listening = listen_on(addresses, port, any_address=True)
        except PortTakenError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        return self._listening.port

    def activate(self) -> None:
        """Start the server on the reserved port.  Does nothing if it runs already.

        Raises:
            StoreUnavailableError: torch could not start it, or no port is reserved.
        """
        if self._connection is not None:
            return
        listening, self._listening = self._listening, None
        if listening is None:
            raise StoreUnavailableError("the workers' store cannot start: no port is reserved for it")
        try:
            self._connection = host(listening.sock, listening.address, _OPERATION_TIMEOUT_SECONDS)
        except RuntimeError as error:
            raise StoreUnavailableError(
                f"the workers' store could not start at {format_endpoint(listening.address, listening.port)}: {error}"
            ) from error

    def release(self) -> None:
        """End the server and give the port back.  May be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._listening is not None:
            self._listening.sock.close()
            self._listening = None
