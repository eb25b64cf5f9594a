"""One HTTP/2 connection to an etcd member, on which gRPC calls are made, one at a time.

A gRPC call is an HTTP/2 request.  Its body is a message after the message's length; its trailer is a status.  The
package ``h2`` implements HTTP/2 and does no I/O; the sockets belong to this package.  The library has no thread and no
global state, so a forked process can open connections whatever its parent has done (decision 21).

What does not live here: opening sockets and choosing connections (:mod:`.transport`), what statuses mean
(:mod:`.answers`).
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings as Http2Settings

from quorate.clock import monotonic, seconds_until

from .._dial import describe

#: The largest answer that is accepted, in bytes.
LARGEST_MESSAGE = 256 << 20
_LONGEST_HEADER = 8000
_BYTES_AT_ONCE = 1 << 16
# The flow-control window: a round's records fit into it.
_WINDOW_BYTES = 1 << 20
# A watch has no deadline that would reveal a frozen member, so a silent member is sent a ping.  etcd disconnects
# clients that send pings more often than every 5 s.
_QUIET_SECONDS = 10.0
_PING_TIMEOUT_SECONDS = 3.0
_PREFIX_BYTES = 5
_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
_CODE_OF_STATUS = {str(number): code for number, code in enumerate(_CODES)}
# For answers without a gRPC status (gRPC's page "HTTP to gRPC Status Code Mapping").
_CODES_OF_HTTP = {
    "400": "INTERNAL",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "UNAVAILABLE",
}


@final
class CallError(Exception):
    """A call failed.  ``code`` is the name of a gRPC status, ``details`` a text, mostly of the server."""

    def __init__(self, code: str, details: str) -> None:
        self.code, self.details = code, details
        super().__init__(f"{code}: {details}")


@final
class Http2Connection:
    """An HTTP/2 connection over ``sock``, which is connected.  One thread at a time may use it.

    After any CallError of :meth:`begin` or :meth:`next_message`, :attr:`is_reusable` says whether it can be kept.
    """

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self.sock = sock
        self._authority = authority
        self._scheme = "https" if isinstance(sock, ssl.SSLSocket) else "http"
        self._http = _make_state_machine()
        self._has_ended = True
        self._is_broken = False
        self._check_at = 0.0  # when to send a ping, or to give up the answer to it
        self._ping_is_sent = False
        self._begin_stream(0)

    def _begin_stream(self, stream: int) -> None:
        self._stream = stream
        self._headers: dict[str, str] = {}
        self._buffer = bytearray()
        self._messages: deque[bytes] = deque()
        self._reset = ""

    @property
    def is_reusable(self) -> bool:
        """Whether another call can be made: the last call has ended, and the connection is not broken."""
        return self._has_ended and not self._is_broken

    def is_alive(self) -> bool:
        """Read what came since the last call; return whether another call can be made.  Never waits."""
        try:
            while self.is_reusable:
                self.sock.settimeout(0.0)
                self._handle_bytes(self.sock.recv(_BYTES_AT_ONCE))
                self._flush(monotonic() + _PING_TIMEOUT_SECONDS)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except (OSError, CallError):
            self._is_broken = True
        return False

    # --- a call -------------------------------------------------------------------------------------------------------

    def begin(self, path: str, message: bytes, metadata: Sequence[tuple[str, str]], deadline: float) -> None:
        """Send a call's only request, and with it the ``deadline`` (monotonic seconds).

        Raises:
            CallError: the deadline has passed, or the connection broke.
        """
        self._has_ended = False
        self._check_at, self._ping_is_sent = monotonic() + _QUIET_SECONDS, False
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "quorate-rendezvous-etcd"),
            ("grpc-timeout", _format_timeout(deadline - monotonic())),
            *metadata,
        ]
        try:
            self._begin_stream(self._http.get_next_available_stream_id())
            self._http.send_headers(self._stream, headers)
            self._send(b"\0" + len(message).to_bytes(4, "big") + message, deadline)
        except H2Error as error:
            raise self._break(f"the connection cannot be used ({describe(error)})") from None

    def _send(self, body: bytes, deadline: float) -> None:
        """Send the request's body, within the member's flow-control window."""
        http, start = self._http, 0
        while start < len(body) and not self._has_ended:
            room = min(http.local_flow_control_window(self._stream), http.max_outbound_frame_size)
            if room > 0:
                http.send_data(self._stream, body[start : start + room], end_stream=start + room >= len(body))
                start += room
            else:
                self._flush(deadline)
                self._receive(deadline)
        self._is_broken |= start < len(body)  # answered before all of it was sent; the rest is not sent
        self._flush(deadline)

    def next_message(self, deadline: float) -> bytes | None:
        """Return the call's next answer; ``None`` once the call has ended with success.

        Raises:
            CallError: the call failed, the connection broke, or ``deadline`` (monotonic seconds) has passed.
        """
        while not self._messages:
            if self._has_ended:
                self._check_status()
                return None
            self._receive(deadline)
        return self._messages.popleft()

    def _check_status(self) -> None:
        """Raise CallError unless the trailer says that the call has succeeded."""
        headers = self._headers
        status = headers.get("grpc-status", "")
        if not status and self._reset:
            raise CallError("UNAVAILABLE", self._reset)
        if not status:
            http = headers.get(":status", "none")
            kind = headers.get("content-type", "none")
            code = _CODES_OF_HTTP.get(http, "UNKNOWN")
            raise CallError(code, f"it does not answer as gRPC (HTTP status {http}, content type {kind})")
        if status != "0":
            raise CallError(_CODE_OF_STATUS.get(status, "UNKNOWN"), unquote(headers.get("grpc-message", "")))
        if self._buffer:
            raise CallError("INTERNAL", "an answer ended inside a message")

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _receive(self, deadline: float) -> None:
        """Wait for some bytes and process them.  Send a ping after a long silence."""
        now = monotonic()
        if now >= deadline:
            raise CallError("DEADLINE_EXCEEDED", "no answer")
        try:
            self.sock.settimeout(max(0.001, min(deadline, self._check_at) - now))
            self._handle_bytes(self.sock.recv(_BYTES_AT_ONCE))
        except TimeoutError:
            self._send_ping(deadline)
            return
        except OSError as error:
            raise self._break(f"the connection broke: {describe(error)}") from None
        self._check_at, self._ping_is_sent = monotonic() + _QUIET_SECONDS, False
        # Frames that are due at the end of a call, such as the answer to a ping, are sent with the next call.
        if not self._has_ended:
            self._flush(deadline)

    def _send_ping(self, deadline: float) -> None:
        if monotonic() < self._check_at:
            return  # the deadline has passed
        if self._ping_is_sent:
            raise self._break(f"no answer to a ping within {_PING_TIMEOUT_SECONDS:g} s")
        self._http.ping(b"quorate?")
        self._flush(deadline)
        self._check_at, self._ping_is_sent = monotonic() + _PING_TIMEOUT_SECONDS, True

    def _flush(self, deadline: float) -> None:
        data = self._http.data_to_send()
        if not data:
            return
        try:
            self.sock.settimeout(max(0.001, seconds_until(deadline)))
            self.sock.sendall(data)
        except TimeoutError:
            self._is_broken = True  # part of it may have been sent
            raise CallError("DEADLINE_EXCEEDED", "no answer") from None
        except OSError as error:
            raise self._break(f"the connection broke: {describe(error)}") from None

    def _handle_bytes(self, data: bytes) -> None:
        if not data:
            raise self._break("the connection was closed")
        try:
            events = self._http.receive_data(data)
        except Exception as error:  # h2 has bugs too; whatever a peer sends ends this call and nothing else
            raise self._break(f"the peer does not speak HTTP/2 ({describe(error)})") from None
        for event in events:
            self._handle_event(event)

    def _handle_event(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self._is_broken = True
            if not self._has_ended:
                raise self._break("the server closes the connection")
        if getattr(event, "stream_id", None) != self._stream:
            return
        if isinstance(event, DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length, self._stream)
            self._handle_data(event.data)
        elif isinstance(event, (ResponseReceived, TrailersReceived)):
            self._headers.update((_text(name), _text(value)) for name, value in event.headers)
        elif isinstance(event, StreamEnded):
            self._has_ended = True
        elif isinstance(event, StreamReset):
            self._has_ended = True
            self._reset = f"the server reset the call (HTTP/2 error {int(event.error_code)})"

    def _handle_data(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _PREFIX_BYTES:
            size = int.from_bytes(buffer[1:_PREFIX_BYTES], "big")
            if buffer[0] != 0:
                raise self._break("it sends compressed messages, which were not asked for")
            if size > LARGEST_MESSAGE:
                raise self._break(f"it sends a message of {size} bytes; the limit is {LARGEST_MESSAGE}")
            end = _PREFIX_BYTES + size
            if len(buffer) < end:
                return
            self._messages.append(bytes(buffer[_PREFIX_BYTES:end]))
            del buffer[:end]

    def _break(self, details: str) -> CallError:
        self._is_broken = True
        return CallError("UNAVAILABLE", details)


def _make_state_machine() -> H2Connection:
    """Return h2's connection, with its preface ready to be sent."""
    configuration = H2Configuration(
        client_side=True,
        header_encoding=None,
        # The headers that are sent are constants, and those that are received are checked here.
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
    )
    http = H2Connection(configuration)
    http.local_settings = Http2Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 16,
        },
    )
    http.initiate_connection()
    http.increment_flow_control_window(_WINDOW_BYTES)
    return http


def _text(raw: bytes | str) -> str:
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return text[:_LONGEST_HEADER]


def _format_timeout(seconds: float) -> str:
    """Return the timeout as gRPC writes it: at most eight digits and a unit."""
    milliseconds = max(1, int(seconds * 1000))
    return f"{milliseconds}m" if milliseconds < 10**8 else f"{min(milliseconds // 1000, 10**8 - 1)}S"
