"""A channel to one member: calls from any thread, over as many connections as calls are under way at once.

Mostly that is one.  A connection whose call has ended waits for the next; one whose call did not end well is closed.
What does not live here: which member is talked to, and what is tried again (:mod:`._transport`).
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator, Sequence
from typing import final

from quorate.clock import monotonic

from ._dialling import Resolver, dial
from ._http2 import CallError, Wire
from ._settings import Endpoint

__all__ = ["Channel"]

# A store calls from two threads at once at most, its own and the one that keeps the leases.
_IDLE_AT_MOST = 2

_Metadata = Sequence[tuple[str, str]]


@final
class Channel:
    """Makes calls.  Connects when it has to.  Any thread may use it; a forked child may not."""

    def __init__(self, endpoint: Endpoint, trust: ssl.SSLContext | None, resolver: Resolver) -> None:
        self._endpoint, self._trust, self._resolver = endpoint, trust, resolver
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._idle: list[Wire] = []
        self._is_closed = False

    def call(self, path: str, message: bytes, timeout: float, metadata: _Metadata = ()) -> bytes:
        """Call a method with one request and one answer; returns the answer.

        Raises:
            CallError: it was refused, or did not end within ``timeout`` seconds, or this channel was closed.
        """
        deadline = monotonic() + timeout
        wire = self._begin(path, message, metadata, deadline)
        try:
            answer = wire.next_message(deadline)
            while wire.next_message(deadline) is not None:
                pass  # one was asked for
        except CallError as error:
            raise self._explain(error) from None
        finally:
            self._release(wire)
        if answer is None:
            raise CallError("INTERNAL", "the call ended without an answer")
        return answer

    def stream(
        self, path: str, message: bytes, timeout: float, metadata: _Metadata = ()
    ) -> Generator[bytes, None, None]:
        """Call a method that answers again and again, for ``timeout`` seconds at most; raises as :meth:`call`.

        The connection is closed with the iterator.
        """
        deadline = monotonic() + timeout
        wire = self._begin(path, message, metadata, deadline)
        try:
            while True:
                answer = wire.next_message(deadline)
                if answer is None:
                    return
                yield answer
        except CallError as error:
            raise self._explain(error) from None
        finally:
            self._release(wire)

    def close(self) -> None:
        """Close all connections; calls that are under way end at once, with an error.  Never blocks."""
        with self._lock:
            self._is_closed = True
            for wire in self._idle:
                self._drop(wire.sock)
            self._idle.clear()
            for sock in self._sockets:
                _shut(sock)

    def close_after_fork(self) -> None:
        """Close this process's copies, in a forked child, without a word to the member; takes no lock."""
        self._is_closed = True
        for sock in list(self._sockets):
            sock.close()

    # --- connections --------------------------------------------------------------------------------------------------

    def _begin(self, path: str, message: bytes, metadata: _Metadata, deadline: float) -> Wire:
        wire = self._take(deadline)
        try:
            wire.begin(path, message, metadata, deadline)
        except CallError as error:
            self._release(wire)
            raise self._explain(error) from None
        except BaseException:
            self._release(wire)
            raise
        return wire

    def _take(self, deadline: float) -> Wire:
        """Return a connection that nobody uses."""
        while True:
            with self._lock:
                self._check_open()
                wire = self._idle.pop() if self._idle else None
            if wire is None:
                return self._dial(deadline)
            is_alive = False
            try:
                is_alive = wire.is_alive()
            finally:
                if not is_alive:
                    self._release(wire)
            if is_alive:
                return wire

    def _dial(self, deadline: float) -> Wire:
        mine: list[socket.socket] = []
        try:
            sock = dial(
                self._endpoint, self._trust, self._resolver, deadline, lambda new, old: self._register(new, old, mine)
            )
        except BaseException as error:
            with self._lock:
                for sock in mine:
                    self._drop(sock)
            raise (self._explain(error) if isinstance(error, CallError) else error) from None
        with self._lock:
            for other in mine:
                if other is not sock:
                    self._drop(other)
        return Wire(sock, str(self._endpoint))

    def _register(self, new: socket.socket, old: socket.socket | None, mine: list[socket.socket]) -> None:
        mine.append(new)
        with self._lock:
            self._sockets.add(new)
            if old is not None:
                self._drop(old)
            self._check_open()

    def _release(self, wire: Wire) -> None:
        with self._lock:
            if wire.is_reusable and not self._is_closed and len(self._idle) < _IDLE_AT_MOST:
                self._idle.append(wire)
            else:
                self._drop(wire.sock)

    def _drop(self, sock: socket.socket) -> None:
        # Under the lock, so that nobody shuts a number that belongs to another socket by now.
        self._sockets.discard(sock)
        sock.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise CallError("CANCELLED", "the connection was given up")

    def _explain(self, error: CallError) -> CallError:
        """Return what to tell of a call that may have failed because this channel was closed meanwhile."""
        return CallError("CANCELLED", "the connection was given up") if self._is_closed else error


def _shut(sock: socket.socket) -> None:
    try:
        # Not the method of ssl's class: it would forget its state under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # it is broken, closed, or not connected yet
