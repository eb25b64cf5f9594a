"""The worker's side of a function's result: it is sent to the agent, and the worker waits until it is released.

Each worker connects to its context's listener before it calls its function, and sends the pickled result through that
connection afterwards.  Then it waits for the end of the connection: libraries such as torch may need its threads and
sockets until the other workers are done.  The connection ends when the context closes it, or the agent dies.

What does not live here: the agent's side (:mod:`._deliveries`), and the call (:mod:`._task`).
"""

from __future__ import annotations

import os
import socket
from struct import Struct
from typing import final

from quorate.files import write_all

#: What precedes the pickled result: its length.
LENGTH = Struct("!Q")
#: The agent holds all results of its workers in memory, and twice while it unpickles one.
LARGEST_RESULT_BYTES = 1 << 30
#: How long the next bytes of a result that has begun may take.
STALL_SECONDS = 60.0


@final
class Delivery:
    """A worker's side of the connection; ``address`` is its agent's :attr:`._deliveries.Deliveries.address`.

    It connects before the function runs, so that a function that uses up all descriptors does not matter, and again if
    the function has closed the descriptor.

    Raises:
        OSError: the agent is gone.
    """

    def __init__(self, address: bytes) -> None:
        self._address, self._pid = address, os.getpid()
        self._connect()

    def _connect(self) -> None:
        # Not socket.socket: the program may have replaced that by a class that knows no Unix sockets (proxies).
        connection = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(None)  # whatever default the program has set
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        self._descriptor = connection.detach()
        self._identity = _identity(self._descriptor)

    def send(self, data: bytes) -> bool:
        """Send the result; return whether it was this process's to send.

        It is not in a child that the function has forked, and that returned from the function as well.
        """
        if os.getpid() != self._pid:
            return False
        if _identity(self._descriptor) != self._identity:
            self._connect()
        os.set_blocking(self._descriptor, True)
        for part in (LENGTH.pack(len(data)), data):
            write_all(self._descriptor, part)
        return True

    def wait_for_release(self) -> None:
        """Wait until the agent closes the connection or is dead."""
        while True:
            try:
                os.read(self._descriptor, 1)
                return
            except ConnectionError:
                return  # the agent died
            except Exception:
                # A signal handler has raised it.  The result is delivered, so the wait goes on.
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
