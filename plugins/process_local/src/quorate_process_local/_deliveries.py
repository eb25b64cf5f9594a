"""The results of one context's workers, as they come to the agent, and letting those workers go that wait.

What does not live here: when they are let go (:mod:`._context`), and the workers' side (:mod:`._results`).
"""

from __future__ import annotations

import os
import pickle
from _socket import AF_UNIX, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket
from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, final

from ._fds import forget, hold_with, release
from ._results import LENGTH

if TYPE_CHECKING:
    from ._workers import Worker

__all__ = ["Arrival", "Deliveries"]

_CREDENTIALS = Struct("3i")  # struct ucred of unix(7)
_MOST_BYTES_AT_ONCE = 1 << 20
#: How much of a result is taken in at a time: one that is very large must not keep the agent from all else.
_MOST_READS = 64
_MOST_WAITING = 4096


@final
class Deliveries:
    """Takes results in.

    Arguments:
        workers: the context's, those that are yet to be started included.
        watch, unwatch: have the context make a call whenever a descriptor is readable.
        is_stopping: whether the workers have been told to stop.

    Raises:
        OSError: there is no descriptor left for it.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._workers, self._watch, self._unwatch, self._is_stopping = workers, watch, unwatch, is_stopping
        self._listener = Listener()
        self.address = self._listener.address
        #: Whether no descriptor was left for a connection: :meth:`admit` is to be called again before long.
        self.is_short = False
        self._watch(self._listener.descriptor, self.admit)

    def admit(self) -> None:
        """Accept the connections of workers."""
        listener = self._listener
        try:
            while (arrival := listener.accept()) is not None:
                worker = next((it for it in self._workers if it.exit_code is None and it.pid == arrival.pid), None)
                if worker is None:
                    arrival.close()  # a stranger's
                    continue
                self.let_go(worker)  # its first connection, if it has closed that
                worker.arrival = arrival
                self._watch(arrival.descriptor, partial(self._hear, worker, arrival))
        except OSError:
            if not self.is_short:
                self._unwatch(listener.descriptor)  # it stays readable, so nothing else could be waited for
            self.is_short = True
        else:
            if self.is_short:
                self._watch(listener.descriptor, self.admit)
            self.is_short = False

    def _hear(self, worker: Worker, arrival: Arrival) -> None:
        """Take in what a worker has sent."""
        for _ in range(_MOST_READS):
            if not arrival.read():
                break
        data = arrival.take()
        if data is not None:
            value, problem = _load(data)
            worker.note_result(value, problem, self._is_stopping())
        if arrival.has_ended or (worker.result is not None and worker.result[1]):
            self.let_go(worker)  # it has closed it, or will be reported as failed once it has ended

    def hear_last(self, worker: Worker) -> None:
        """Take in what a worker that has just ended may have sent in its last moment."""
        self.admit()
        if worker.arrival is not None:
            self._hear(worker, worker.arrival)
            self.let_go(worker)

    def let_go(self, worker: Worker) -> None:
        """Have a worker that waits come to its end."""
        if worker.arrival is not None:
            self._unwatch(worker.arrival.descriptor)
            worker.arrival.close()
            worker.arrival = None

    def close(self) -> None:
        """Let all go; nobody can connect any more."""
        for worker in self._workers:
            self.let_go(worker)
        self._unwatch(self._listener.descriptor)
        self._listener.close()


@final
class Listener:
    """Where the workers of one context connect; its address is in no file system.

    Raises:
        OSError: there is no descriptor left for it.
    """

    def __init__(self) -> None:
        #: In Linux's abstract namespace, so that nothing can be left behind.
        self.address = b"\0quorate-" + os.urandom(16).hex().encode()
        self._socket = socket(AF_UNIX, SOCK_STREAM)
        try:
            self._socket.bind(self.address)
            self._socket.listen(_MOST_WAITING)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self.descriptor = self._socket.fileno()
        hold_with(self.descriptor, self._socket.close)

    def accept(self) -> Arrival | None:
        """Return the next new connection, ``None`` if there is none.

        Raises:
            OSError: there is one, but no descriptor for it.
        """
        try:
            descriptor, _ = self._socket._accept()  # type: ignore[attr-defined] # socket.socket is built on it
        except (BlockingIOError, ConnectionError):
            return None
        return Arrival(descriptor)

    def close(self) -> None:
        """Nobody can connect any more."""
        forget(self.descriptor)
        self._socket.close()


@final
class Arrival:
    """The agent's side of a worker's connection.  ``pid`` is the worker's, as the kernel knows it."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket(fileno=descriptor)
        self._socket.setblocking(False)
        self.descriptor = descriptor
        hold_with(descriptor, self._socket.close)
        packed = self._socket.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
        self.pid: int = _CREDENTIALS.unpack(packed)[0]
        self._data = bytearray()
        self.has_ended = False

    def read(self) -> bool:
        """Take in some of what has come; return whether there may be more already."""
        try:
            part = self._socket.recv(_MOST_BYTES_AT_ONCE)
        except BlockingIOError:
            return False
        except ConnectionError:
            part = b""
        self._data += part
        self.has_ended = not part
        return bool(part)

    def take(self) -> bytearray | None:
        """Return the packed result once all of it is here, and forget it."""
        if len(self._data) < LENGTH.size or len(self._data) - LENGTH.size < LENGTH.unpack_from(self._data)[0]:
            return None
        data, self._data = self._data, bytearray()
        return data

    def close(self) -> None:
        """Let the worker go."""
        if self.descriptor >= 0:
            self._socket.detach()
            release(self.descriptor)
            self.descriptor = -1


def _load(data: bytearray) -> tuple[Any, str]:
    """Return ``(value, problem)`` from what :meth:`Arrival.take` returned."""
    try:
        return pickle.loads(memoryview(data)[LENGTH.size :]), ""
    except Exception as error:
        return None, f"the function's return value cannot be unpickled in the agent: {type(error).__name__}: {error}"
