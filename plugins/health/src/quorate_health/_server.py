"""The HTTP server: waitress with bounds, so that no client can cost the agent much, or keep others out for long.

What is served does not live here (:mod:`._app`).

What is bounded, beside what waitress bounds itself (header and body sizes):

* a connection is good for one request and lives ``_LIFETIME_SECONDS`` at most, however busily its client dawdles;
* ``_CONNECTIONS`` are open at once; one more takes the place of the one that has kept us waiting the longest;
* connections are accepted at a bounded rate, and not at all for a while when the process has no descriptor left;
* requests are answered by ``_THREADS`` threads; nothing runs, and nothing wakes, while nobody asks.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, final

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from quorate.clock import monotonic

__all__ = ["Server"]

_CONNECTIONS = 64
_LIFETIME_SECONDS = 20.0
_THREADS = 3
_ACCEPTS_PER_SECOND, _BURST = 200.0, 64.0
_LARGEST_HEADER, _LARGEST_BODY = 16 * 1024, 1024
_BACKLOG = 256
#: For how long nothing is accepted after an error such as "too many open files".
_PAUSE_SECONDS = 1.0

#: waitress warns of each queued request; a crowd of clients is no reason to fill the agent's stderr.
_silence = logging.Logger("quorate-health", logging.CRITICAL + 1)


class _OneRequest(HTTPRequestParser):  # type: ignore[misc] # waitress is not typed
    """Has each connection closed after its answer: idle ones are then only those that never asked."""

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        self.headers["CONNECTION"] = "close"


class _Channel(HTTPChannel):  # type: ignore[misc] # waitress is not typed
    parser_class = _OneRequest
    logger = _silence

    def __init__(self, *args: Any, **options: Any) -> None:
        self.begun_at = monotonic()
        super().__init__(*args, **options)

    def handle_close(self) -> None:
        # A worker that was forked meanwhile holds a copy of the descriptor: closing ours alone would tell nobody.
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster
        super().handle_close()


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc] # waitress is not typed
    """waitress' threads, kept so that they can be joined."""

    logger = queue_logger = _silence

    def __init__(self) -> None:
        super().__init__()
        self.started: list[threading.Thread] = []

    def start_new_thread(self, target: Callable[..., Any], thread_no: int) -> None:
        thread = threading.Thread(target=target, name=f"quorate-health-{thread_no}", args=(thread_no,), daemon=True)
        self.started.append(thread)
        thread.start()


class _Listener(TcpWSGIServer):  # type: ignore[misc] # waitress is not typed
    """Accepts connections as the bounds allow.  Everything here is called on the server's own thread."""

    channel_class = _Channel
    logger = _silence
    _credit, _credited_at, _paused_until = _BURST, 0.0, 0.0

    def readable(self) -> bool:
        return self.wait_to_accept(monotonic()) == 0.0

    def wait_to_accept(self, now: float) -> float:
        """Return the seconds until another connection may be accepted."""
        self._credit = min(_BURST, self._credit + (now - self._credited_at) * _ACCEPTS_PER_SECOND)
        self._credited_at = now
        return max(0.0, self._paused_until - now, (1.0 - self._credit) / _ACCEPTS_PER_SECOND)

    def handle_accept(self) -> None:
        try:
            accepted = self.accept()
        except OSError:
            self._paused_until = monotonic() + _PAUSE_SECONDS
            return
        if accepted is None:
            return  # the client has given up
        self._credit -= 1.0
        if len(self.active_channels) >= _CONNECTIONS:
            self._make_room()
        connection, address = accepted
        self.channel_class(self, connection, address, self.adj, map=self._map)

    def _make_room(self) -> None:
        waiting = [channel for channel in self.active_channels.values() if not channel.requests]
        oldest = min(waiting or self.active_channels.values(), key=lambda channel: channel.begun_at)
        oldest.handle_close()

    def drop_overdue(self, now: float) -> float | None:
        """Close connections that have had their time; returns the seconds until the next one has."""
        for channel in list(self.active_channels.values()):
            if channel.begun_at + _LIFETIME_SECONDS <= now:
                channel.handle_close()
        begun = [channel.begun_at for channel in self.active_channels.values()]
        return min(begun) + _LIFETIME_SECONDS - now if begun else None


@final
class Server:
    """Serves ``application`` on ``listener``, a bound socket, until it is closed.

    Arguments:
        application: a WSGI application.
        listener: becomes the server's own.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], listener: socket.socket) -> None:
        self._map: dict[int, Any] = {}
        self._closing = False
        self._dispatcher = _Dispatcher()
        adjustments = Adjustments(
            sockets=[listener],
            backlog=_BACKLOG,
            max_request_header_size=_LARGEST_HEADER,
            max_request_body_size=_LARGEST_BODY,
            channel_request_lookahead=0,
            ident=None,
            log_socket_errors=False,
            clear_untrusted_proxy_headers=True,
        )
        family, kind, protocol = listener.family, listener.type, listener.proto
        self._listener = _Listener(
            application,
            self._map,
            _sock=listener,
            dispatcher=self._dispatcher,
            adj=adjustments,
            sockinfo=(family, kind, protocol, listener.getsockname()),
            bind_socket=False,
        )
        self._dispatcher.set_thread_count(_THREADS)

    def run(self) -> None:
        """Serve, on this thread, until :meth:`stop` is called; nothing accepts connections when this returns."""
        try:
            while not self._closing:
                wasyncore.poll2(self._timeout(), self._map)
        finally:
            self._listener.del_channel()
            listener = self._listener.socket
            try:
                listener.shutdown(socket.SHUT_RDWR)  # a forked worker may hold a copy, see _Channel.handle_close
            except OSError:
                pass
            listener.close()
            for channel in list(self._listener.active_channels.values()):
                channel.handle_close()

    def _timeout(self) -> float | None:
        now = monotonic()
        waits = [self._listener.drop_overdue(now), self._listener.wait_to_accept(now) or None]
        due = [wait for wait in waits if wait is not None]
        return max(0.005, min(due)) if due else None

    def stop(self) -> None:
        """Have :meth:`run` return at once; from any thread."""
        self._closing = True
        self._listener.pull_trigger()

    def join(self, timeout: float) -> bool:
        """Wait for the threads that answer requests, after :meth:`run` has returned; returns whether all have ended.

        One that is stuck, in a file system that does not answer, is left to the end of the process.
        """
        deadline = monotonic() + timeout
        self._dispatcher.set_thread_count(0)
        for thread in self._dispatcher.started:
            thread.join(max(0.0, deadline - monotonic()))
        if any(thread.is_alive() for thread in self._dispatcher.started):
            return False  # it would write to the trigger's descriptor, which may be somebody else's by then
        self._listener.trigger.close()
        return True
