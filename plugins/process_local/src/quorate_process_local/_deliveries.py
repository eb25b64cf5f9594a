"""Takes in the results of one context's workers, and releases the workers that wait.

A result is bounded in size and in the time that it may take to come.  It is unpickled here, in the agent: the code that
a worker runs is trusted as far as the agent's own.

What does not live here: when workers are released (:mod:`._context`), and the sockets (:mod:`._connections`).
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

from quorate.clock import monotonic
from quorate.notices import warn
from quorate.text import printable

from ._commands import remedy_for
from ._connections import Connection, Listener
from ._reserve import Reserve
from ._results import LARGEST_RESULT_BYTES
from ._workers import Worker

#: How much of a result, and how many connections, are taken in at a time, so that other workers are not kept waiting.
_READS_AT_A_TIME = 64
_CONNECTIONS_AT_A_TIME = 256
_LONGEST_PROBLEM = 2048


@final
class Deliveries:
    """The results of one context.

    Arguments:
        workers: the context's, those that are yet to be started included.
        watch, unwatch: have the context make a call whenever a descriptor is readable.
        is_stopping: whether the workers have been asked to stop.
        stall_seconds: how long the next bytes of a result that has begun may take.

    Raises:
        OSError: there is no descriptor left for it.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        is_stopping: Callable[[], bool],
        stall_seconds: float,
    ) -> None:
        self._workers, self._watch, self._unwatch, self._is_stopping = workers, watch, unwatch, is_stopping
        self._stall_seconds = stall_seconds
        #: The workers whose result has begun to come -> when the next bytes must have come, in monotonic seconds.
        self._deadlines: dict[Worker, float] = {}
        self._reserves: list[Reserve] = []
        self._listener = Listener(socket.SOCK_STREAM)
        self.address = b"\0" + self._listener.name.encode()
        #: Whether there was no descriptor left for a connection: :meth:`admit` must be called again soon.
        self.is_short = False
        self._watch(self._listener.descriptor, self.admit)

    def reserve(self) -> None:
        """Keep a descriptor back for the connection of one more worker.

        Raises:
            OSError: no descriptor is left.
        """
        self._reserves.append(Reserve(1))

    def _accept(self) -> socket.socket | None:
        try:
            return self._listener.accept()
        except OSError:
            if not self._reserves:
                raise
            self._reserves.pop().release()
            return self._listener.accept()

    def admit(self) -> None:
        """Accept the connections of workers; any other is closed."""
        listener = self._listener
        try:
            for _ in range(_CONNECTIONS_AT_A_TIME):
                if (accepted := self._accept()) is None:
                    break
                connection = Connection(accepted)
                worker = next((it for it in self._workers if it.exit_code is None and it.pid == connection.pid), None)
                if worker is None:
                    connection.close()
                    continue
                self.release(worker)  # its first connection, if it has closed that
                worker.connection = connection
                self._watch(connection.descriptor, partial(self._receive, worker, connection))
        except OSError as error:
            if not self.is_short:
                warn(f"results of workers wait: {remedy_for(error) or error.strerror}")
                self._unwatch(listener.descriptor)  # it stays readable, so nothing else could be waited for
            self.is_short = True
        else:
            if self.is_short:
                self._watch(listener.descriptor, self.admit)
            self.is_short = False

    def _receive(self, worker: Worker, connection: Connection) -> None:
        """Take in what a worker has sent."""
        before = connection.received_bytes
        for _ in range(_READS_AT_A_TIME):
            if not connection.read():
                break
        if connection.announced_bytes > LARGEST_RESULT_BYTES:
            problem = f"its result has {connection.announced_bytes} bytes, and at most {LARGEST_RESULT_BYTES} are taken"
            self._refuse(worker, problem)
            return
        data = connection.take()
        if data is not None:
            value, problem = _load(data)
            worker.note_result(value, problem, self._is_stopping())
            self._deadlines.pop(worker, None)
        elif connection.received_bytes > before:
            self._deadlines[worker] = monotonic() + self._stall_seconds
        if connection.has_ended or (worker.result is not None and worker.result[1]):
            self.release(worker)  # it has closed the connection, or will be reported as failed once it has ended

    def _refuse(self, worker: Worker, problem: str) -> None:
        """End a worker that does not keep to the protocol: it might never end by itself."""
        worker.note_result(None, problem, self._is_stopping())
        self.release(worker)
        worker.kill()

    def receive_last(self, worker: Worker) -> None:
        """Take in what a worker that has just ended may have sent in its last moment."""
        self.admit()
        if worker.connection is not None:
            self._receive(worker, worker.connection)
            self.release(worker)

    def wake_at(self) -> float | None:
        """Return when :meth:`expire` must be called, in monotonic seconds."""
        return min(self._deadlines.values(), default=None)

    def expire(self, now: float) -> None:
        """End workers that have stopped in the middle of their results."""
        for worker in [worker for worker, deadline in self._deadlines.items() if deadline <= now]:
            seconds = f"{self._stall_seconds:g} s"
            self._refuse(worker, f"it stopped in the middle of sending its result, for {seconds}, and was killed")

    def release(self, worker: Worker) -> None:
        """Have a worker that waits come to its end."""
        self._deadlines.pop(worker, None)
        if worker.connection is not None:
            self._unwatch(worker.connection.descriptor)
            worker.connection.close()
            worker.connection = None

    def close(self) -> None:
        """Release all workers, and take no more connections."""
        while self._reserves:
            self._reserves.pop().release()
        for worker in self._workers:
            self.release(worker)
        self._unwatch(self._listener.descriptor)
        self._listener.close()


def _load(data: memoryview) -> tuple[Any, str]:
    """Return ``(value, problem)``; unpickling runs code of the value's classes, which may raise anything."""
    try:
        return pickle.loads(data), ""
    except BaseException as error:
        text = f"{type(error).__name__}: {_text_of(error)}"
        problem = f"the function's return value cannot be unpickled in the agent: {text}"
        return None, printable(problem, _LONGEST_PROBLEM)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "<its text cannot be made>"
