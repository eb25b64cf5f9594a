"""Where workers connect to their context, and the sockets through which functions send their results.

What does not live here: what is done with what comes (:mod:`._deliveries`), and the worker's side (:mod:`._results`).
"""

from __future__ import annotations

import os
import socket
from typing import final

from quorate.proc import forget, hold, peer_of

from ._results import LENGTH

_BYTES_PER_READ = 1 << 20
_BACKLOG = 4096


@final
class Listener:
    """Where the workers of one context connect, by sockets of ``kind``.

    Its name is in Linux's abstract namespace and in no file system, so nothing can be left over.

    Raises:
        OSError: there is no descriptor left for it.
    """

    def __init__(self, kind: socket.SocketKind) -> None:
        self.name = "quorate-" + os.urandom(16).hex()
        self._socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self._socket.bind(f"\0{self.name}")
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self.descriptor = hold(self._socket.fileno(), self._socket.close)

    def accept(self) -> socket.socket | None:
        """Return the next new connection, ``None`` if none waits.

        Raises:
            OSError: there is one, but no descriptor for it.
        """
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionError):
            return None

    def close(self) -> None:
        """Take no more connections."""
        if self.descriptor >= 0:
            forget(self.descriptor)
            self._socket.close()
            self.descriptor = -1


@final
class Connection:
    """One worker's connection for its result.  ``pid`` is the worker's, as the kernel knows it.

    Arguments:
        accepted: the socket, which becomes this object's.
    """

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self._socket.setblocking(False)
        self.descriptor = hold(accepted.fileno(), accepted.close)
        self.pid = peer_of(accepted)
        self._data = bytearray()
        self._is_complete = False
        #: Whether the other side has closed it.
        self.has_ended = False

    def read(self) -> bool:
        """Take in some of what has come; return whether there may be more already.

        What comes after a whole result is thrown away.
        """
        try:
            part = self._socket.recv(_BYTES_PER_READ)
        except BlockingIOError:
            return False
        except ConnectionError:
            part = b""
        if not self._is_complete:
            self._data += part
        self.has_ended = not part
        return bool(part)

    @property
    def received_bytes(self) -> int:
        """How much of an incomplete result is here."""
        return len(self._data)

    @property
    def announced_bytes(self) -> int:
        """The size of the packed result, 0 before the worker has sent it."""
        if len(self._data) < LENGTH.size:
            return 0
        size: int = LENGTH.unpack_from(self._data)[0]
        return size

    def take(self) -> memoryview | None:
        """Return the packed result once all of it is here, and forget it; only once."""
        if len(self._data) < LENGTH.size or len(self._data) - LENGTH.size < self.announced_bytes:
            return None
        data, self._data, self._is_complete = self._data, bytearray(), True
        return memoryview(data)[LENGTH.size :]

    def close(self) -> None:
        """Release the worker."""
        if self.descriptor >= 0:
            forget(self.descriptor)
            self._socket.close()
            self.descriptor = -1
