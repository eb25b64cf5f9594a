"""The HTTP server: waitress with bounds, so that clients cannot slow down the agent or keep other clients out.

What does not live here: what is served (:mod:`._app`).  waitress bounds the sizes of headers and bodies.  Bounded here:

| what | bound |
|---|---|
| requests of a connection | one |
| life of a connection | ``LIFETIME_SECONDS``, however often its client sends a byte |
| open connections | ``_CONNECTIONS``, and a quarter of the process' descriptors |
| accepted connections | ``_ACCEPTS_PER_SECOND``; none for ``_PAUSE_SECONDS`` when the process has no descriptor left |
| answers that clients do not read | ``MOST_UNSENT_BYTES`` in all; beyond, the oldest of their connections end |
| looks at the connections | a hundred a second, while there are more than ``_MANY`` |
| threads | ``THREADS`` and the server's own; none wakes up without a client |

A connection beyond the bound replaces the oldest one without a request, once that one is ``_REQUEST_SECONDS`` old.
"""

from __future__ import annotations

import logging
import resource
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, final

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from quorate.clock import monotonic

_CONNECTIONS, _MANY = 512, 32
_REQUEST_SECONDS, LIFETIME_SECONDS, _BATCH_SECONDS = 1.0, 20.0, 0.01
THREADS = 3
_ACCEPTS_PER_SECOND, _BURST = 250.0, 256.0
LARGEST_HEADER, LARGEST_BODY = 16 * 1024, 1024
MOST_UNSENT_BYTES = 16 << 20
#: What the kernel holds of one answer.  It would take some MiB for each client that does not read.
_KERNEL_BYTES = 64 * 1024
_LONGEST_ABSOLUTE_ADDRESS = 128
#: Connections that the kernel keeps until they are accepted; it resets further ones.
_BACKLOG = 1024
#: How long nothing is accepted after an error such as "too many open files".
_PAUSE_SECONDS = 1.0

#: waitress warns of each queued request, and many clients would fill the agent's stderr.
_no_log = logging.Logger("quorate-health", logging.CRITICAL + 1)


class _OneRequest(HTTPRequestParser):  # type: ignore[misc] # waitress is not typed
    """Has each connection closed after its answer, so that idle connections are those that have sent no request."""

    def parse_header(self, header_plus: bytes) -> None:
        first_line = header_plus.partition(b"\r\n")[0]
        # waitress needs seconds for an absolute address of a few thousand characters.
        if b"://" in first_line and len(first_line) > _LONGEST_ABSOLUTE_ADDRESS:
            raise ParsingError("URI too long")
        try:
            super().parse_header(header_plus)
        except ValueError:  # of urllib, for a host such as "[a"
            raise ParsingError("Bad URI") from None
        self.headers["CONNECTION"] = "close"


class _Channel(HTTPChannel):  # type: ignore[misc] # waitress is not typed
    parser_class = _OneRequest
    logger = _no_log

    def __init__(self, *args: Any, **options: Any) -> None:
        self.begun_at = monotonic()
        super().__init__(*args, **options)

    def handle_close(self) -> None:
        if self.socket is None:
            return  # one event can give two reasons to close
        # A worker that was forked meanwhile holds a copy of the descriptor: close() alone would not end the connection.
        with suppress(OSError):  # the client has closed it
            self.socket.shutdown(socket.SHUT_RDWR)
        super().handle_close()


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc] # waitress is not typed
    """waitress' threads, kept so that they can be joined."""

    logger = queue_logger = _no_log

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
    logger = _no_log
    _credit, _credited_at, _paused_until = _BURST, 0.0, 0.0
    most_connections = _CONNECTIONS

    def readable(self) -> bool:
        return self.wait_to_accept(monotonic()) == 0.0

    def wait_to_accept(self, now: float) -> float:
        """Return the seconds until another connection may be accepted."""
        self._credit = min(_BURST, self._credit + (now - self._credited_at) * _ACCEPTS_PER_SECOND)
        self._credited_at = now
        waits = [0.0, self._paused_until - now, (1.0 - self._credit) / _ACCEPTS_PER_SECOND]
        if len(self.active_channels) >= self.most_connections:
            waits.append(max(_BATCH_SECONDS, self._oldest().begun_at + _REQUEST_SECONDS - now))
        return max(waits)

    def handle_accept(self) -> None:
        while self.wait_to_accept(monotonic()) == 0.0:
            try:
                accepted = self.accept()
            except OSError:
                self._paused_until = monotonic() + _PAUSE_SECONDS
                return
            if accepted is None:
                return  # no further client waits
            self._credit -= 1.0
            connection, address = accepted
            with suppress(OSError):  # the client has gone
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
            self.channel_class(self, connection, address, self.adj, map=self._map)

    def _oldest(self) -> _Channel:
        """Return the oldest connection without a request; if all have one, the oldest."""
        channels: list[_Channel] = list(self.active_channels.values())
        waiting = [channel for channel in channels if not channel.requests]
        return min(waiting or channels, key=lambda channel: channel.begun_at)

    def close_expired(self, now: float) -> float | None:
        """Close connections that are over their time; returns the seconds until the next one is.

        Must not be called while events are dispatched: a descriptor that is reused would get the events of its former
        connection.
        """
        for channel in list(self.active_channels.values()):
            if channel.begun_at + LIFETIME_SECONDS <= now:
                channel.handle_close()
        while len(self.active_channels) > self.most_connections * 7 // 8:
            oldest = self._oldest()
            if oldest.begun_at + _REQUEST_SECONDS > now:
                break
            oldest.handle_close()
        self._close_unread()
        begun = [channel.begun_at for channel in self.active_channels.values()]
        return min(begun) + LIFETIME_SECONDS - now if begun else None

    def _close_unread(self) -> None:
        """Close the oldest connections with an answer that their clients do not read, while they hold too much."""
        unread = [channel for channel in self.active_channels.values() if channel.total_outbufs_len]
        held = sum(channel.total_outbufs_len for channel in unread)
        unread.sort(key=lambda channel: channel.begun_at, reverse=True)
        while held > MOST_UNSENT_BYTES and len(unread) > 1:  # a single answer may be larger
            oldest = unread.pop()
            held -= oldest.total_outbufs_len
            oldest.handle_close()


@final
class Server:
    """Serves ``application`` on ``listener``, a bound socket, until it is closed.

    Arguments:
        application: a WSGI application.
        listener: owned by the server from now on.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], listener: socket.socket) -> None:
        self._map: dict[int, Any] = {}
        self._closing = threading.Event()
        self._dispatcher = _Dispatcher()
        adjustments = Adjustments(
            sockets=[listener],
            backlog=_BACKLOG,
            max_request_header_size=LARGEST_HEADER,
            max_request_body_size=LARGEST_BODY,
            outbuf_overflow=MOST_UNSENT_BYTES,  # below that no answer goes through a temporary file
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
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft_limit != resource.RLIM_INFINITY:
            self._listener.most_connections = min(_CONNECTIONS, max(4, soft_limit // 4))
        self._dispatcher.set_thread_count(THREADS)

    def run(self) -> None:
        """Serve, on this thread, until :meth:`stop` is called; nothing accepts connections when this returns."""
        try:
            while not self._closing.is_set():
                try:
                    wasyncore.poll2(self._timeout(), self._map)
                except Exception:
                    # Whatever one connection has caused, the server goes on without the present ones.
                    self._drop_all()
                    self._closing.wait(_BATCH_SECONDS)
                if len(self._listener.active_channels) > _MANY:
                    self._closing.wait(_BATCH_SECONDS)
        finally:
            self._listener.del_channel()
            listener = self._listener.socket
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # a forked worker may hold a copy, see _Channel.handle_close
            listener.close()
            self._drop_all()

    def _drop_all(self) -> None:
        for channel in list(self._listener.active_channels.values()):
            channel.handle_close()

    def _timeout(self) -> float | None:
        now = monotonic()
        waits = [self._listener.close_expired(now), self._listener.wait_to_accept(now) or None]
        due = [wait for wait in waits if wait is not None]
        return max(0.005, min(due)) if due else None

    def stop(self) -> None:
        """Make :meth:`run` return at once; from any thread."""
        self._closing.set()
        self._listener.pull_trigger()

    def join(self, timeout: float) -> bool:
        """Wait for the threads that answer requests, after :meth:`run` has returned; returns whether all have ended.

        One that is stuck, in a file system that does not answer, is left running.
        """
        deadline = monotonic() + timeout
        self._dispatcher.set_thread_count(0)
        for thread in self._dispatcher.started:
            thread.join(max(0.0, deadline - monotonic()))
        if any(thread.is_alive() for thread in self._dispatcher.started):
            return False  # it would write to the trigger's descriptor, which may be another file's by then
        self._listener.trigger.close()
        return True
