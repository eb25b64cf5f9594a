"""How a function's result comes to the agent, and how its worker then stays until the agent lets it go.

Each worker connects to its context's listener before it calls its function, and sends the pickled result through that
connection afterwards.  Then it waits for the end of the connection: libraries such as torch may still need its threads
and sockets until the other workers are done, too.  The end comes when the context closes it, or the agent dies.

What does not live here: the agent's side (:mod:`._deliveries`), and the call itself (:mod:`._task`).
"""

from __future__ import annotations

import os

# The type beneath socket.socket, which the worker's program may have replaced (gevent, proxies).
from _socket import AF_UNIX, SOCK_STREAM, socket
from struct import Struct
from typing import final

__all__ = ["LENGTH", "Delivery"]

#: What goes before the pickled result.
LENGTH = Struct("!Q")


@final
class Delivery:
    """A worker's side of the connection; ``address`` is its agent's :attr:`._deliveries.Listener.address`.

    Connected before the function runs, so that no function can use up the descriptor that it needs; connected again if
    the function has closed it.

    Raises:
        OSError: the agent is gone.
    """

    def __init__(self, address: bytes) -> None:
        self._address, self._pid = address, os.getpid()
        self._connect()

    def _connect(self) -> None:
        connection = socket(AF_UNIX, SOCK_STREAM)
        try:
            connection.settimeout(None)  # whatever default the program has set
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        self._descriptor = connection.detach()
        self._identity = _identity(self._descriptor)

    def send(self, data: bytes) -> bool:
        """Hand the result over; return false where there is nobody to hand it to.

        That is in a child that the function has forked, and that came back from it as well.
        """
        if os.getpid() != self._pid:
            return False
        if _identity(self._descriptor) != self._identity:
            self._connect()
        os.set_blocking(self._descriptor, True)
        for part in (LENGTH.pack(len(data)), data):
            view = memoryview(part)
            while view:
                view = view[os.write(self._descriptor, view) :]
        return True

    def stay(self) -> None:
        """Wait until the agent lets go or is dead."""
        while True:
            try:
                os.read(self._descriptor, 1)
                return
            except ConnectionError:
                return  # the agent died
            except Exception:
                # From a signal handler: the result is delivered, and nobody is left to tell.
                if _identity(self._descriptor) != self._identity:
                    return  # a thread has closed it
            except BaseException:
                return  # a signal handler wants to exit, or KeyboardInterrupt


def _identity(descriptor: int) -> tuple[int, int]:
    """Return what tells an open file from any other that gets the same number later."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
