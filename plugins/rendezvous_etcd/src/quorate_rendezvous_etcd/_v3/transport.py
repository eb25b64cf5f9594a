"""Connections to one member: opening them, and choosing one for each call.

Mostly there is one connection.  A connection whose call has ended waits for the next call; one whose call failed is
closed.  What does not live here: HTTP/2 (:mod:`.http2`), which member is called, and retries (:mod:`.client`).
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator, Sequence
from functools import partial
from typing import final

from quorate.clock import monotonic, seconds_until
from quorate.net import Endpoint, shut_down

from .._dial import describe, dial
from .http2 import CallError, Http2Connection

# A store has at most two calls at once: its own, and the one that keeps the leases alive.
_MOST_IDLE = 2
_Metadata = Sequence[tuple[str, str]]


@final
class Channel:
    """Calls one member.  Connects when it has to.  Any thread may use it; a forked child may not."""

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        self._endpoint, self._tls = endpoint, tls
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._idle: list[Http2Connection] = []
        self._is_closed = False

    def call(self, path: str, message: bytes, timeout: float, metadata: _Metadata = ()) -> bytes:
        """Call a method with one request and one answer; return the answer.

        Raises:
            CallError: the call was refused, or did not end within ``timeout`` seconds, or this channel was closed.
        """
        deadline = monotonic() + timeout
        connection = self._begin(path, message, metadata, deadline)
        try:
            answer = connection.next_message(deadline)
            while connection.next_message(deadline) is not None:
                pass  # only the first answer counts
        except CallError as error:
            raise self._explain(error) from None
        finally:
            self._release(connection)
        if answer is None:
            raise CallError("INTERNAL", "the call ended without an answer")
        return answer

    def stream(
        self, path: str, message: bytes, timeout: float, metadata: _Metadata = ()
    ) -> Generator[bytes, None, None]:
        """Call a method that has many answers, for at most ``timeout`` seconds; raises as :meth:`call`.

        The connection is closed with the iterator.
        """
        deadline = monotonic() + timeout
        connection = self._begin(path, message, metadata, deadline)
        try:
            while (answer := connection.next_message(deadline)) is not None:
                yield answer
        except CallError as error:
            raise self._explain(error) from None
        finally:
            self._release(connection)

    def close(self) -> None:
        """Close all connections; calls that are under way end at once, with an error.  Never blocks."""
        with self._lock:
            self._is_closed = True
            for connection in self._idle:
                self._drop(connection.sock)
            self._idle.clear()
            for sock in self._sockets:
                shut_down(sock)

    def close_after_fork(self) -> None:
        """Close this process's copies in a forked child; the connections stay up.  Takes no lock."""
        self._is_closed = True
        for sock in list(self._sockets):
            sock.close()

    # --- choosing a connection ----------------------------------------------------------------------------------------

    def _begin(self, path: str, message: bytes, metadata: _Metadata, deadline: float) -> Http2Connection:
        connection = self._acquire(deadline)
        try:
            connection.begin(path, message, metadata, deadline)
        except BaseException as error:
            self._release(connection)
            raise (self._explain(error) if isinstance(error, CallError) else error) from None
        return connection

    def _acquire(self, deadline: float) -> Http2Connection:
        """Return a connection that is not in use."""
        while True:
            with self._lock:
                self._check_open()
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect(deadline)
            is_alive = False
            try:
                is_alive = connection.is_alive()
            finally:
                if not is_alive:
                    self._release(connection)
            if is_alive:
                return connection

    def _release(self, connection: Http2Connection) -> None:
        with self._lock:
            if connection.is_reusable and not self._is_closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
            else:
                self._drop(connection.sock)

    def _drop(self, sock: socket.socket) -> None:
        # Under the lock: the descriptor's number may belong to another socket as soon as this one is closed.
        self._sockets.discard(sock)
        sock.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise CallError("CANCELLED", "the connection was closed by this node")

    def _explain(self, error: CallError) -> CallError:
        """Return the error to raise for a call that may have failed because this channel was closed meanwhile."""
        return CallError("CANCELLED", "the connection was closed by this node") if self._is_closed else error

    # --- opening a connection -----------------------------------------------------------------------------------------

    def _connect(self, deadline: float) -> Http2Connection:
        try:
            sock = dial(self._endpoint, deadline, self._own, self._close, partial(self._secure, deadline=deadline))
        except OSError as error:
            raise self._explain(CallError("UNAVAILABLE", f"cannot connect: {describe(error)}")) from None
        return Http2Connection(sock, str(self._endpoint))

    def _own(self, sock: socket.socket) -> None:
        """Have :meth:`close` shut ``sock`` down."""
        with self._lock:
            self._check_open()
            self._sockets.add(sock)

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            self._drop(sock)

    def _secure(self, plain: socket.socket, deadline: float) -> socket.socket:
        if self._tls is None:
            return plain
        with self._lock:
            self._check_open()
            secure = self._tls.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=self._endpoint.host)
            self._sockets.add(secure)
            self._drop(plain)
        try:
            secure.settimeout(max(0.001, seconds_until(deadline)))
            secure.do_handshake()
            if secure.selected_alpn_protocol() != "h2":
                raise OSError("the server offers TLS without HTTP/2")
        except BaseException:
            self._close(secure)
            raise
        return secure
