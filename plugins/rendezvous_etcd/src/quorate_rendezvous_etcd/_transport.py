"""Calls to an etcd cluster: one connection to work and one to wait, and others when a member does not answer.

Each attempt has a short deadline and each call a long one; every request may be sent twice, so whoever builds one makes
sure that being applied twice is being applied once.  What does not live here: what the requests mean (:mod:`._job`,
:mod:`._store`) and which answers can be tried again (:mod:`._answers`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError, UsageError

from ._answers import RefusedError, Trouble, judge
from ._definitions import Messages, load_messages
from ._fork import close_in_children, load_grpc
from ._settings import Settings

__all__ = ["Call", "Connection", "Transport"]

Call = Callable[..., Any]

_METHODS = {
    "Txn": ("KV", "TxnRequest", "TxnResponse"),
    "LeaseGrant": ("Lease", "LeaseGrantRequest", "LeaseGrantResponse"),
    "LeaseRevoke": ("Lease", "LeaseRevokeRequest", "LeaseRevokeResponse"),
    # A stream in etcd's definition, of which one request and one answer are used.
    "LeaseKeepAlive": ("Lease", "LeaseKeepAliveRequest", "LeaseKeepAliveResponse"),
    "Authenticate": ("Auth", "AuthenticateRequest", "AuthenticateResponse"),
    "Watch": ("Watch", "WatchRequest", "WatchResponse"),
}
_OPTIONS = [
    # A frozen member is noticed by the deadlines of attempts; these notice it for whoever only waits.  etcd cuts off
    # clients that ask more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A new channel shall mean a new connection.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy for the web has no business between a node and its cluster's etcd.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # The watching thread works its stream off by itself: no threads of gRPC's Python part, so none to wait for.
    ("SingleThreadedUnaryStream", 1),
]
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5


@final
class Connection:
    """A channel to one member, and the calls on it."""

    __slots__ = ("calls", "channel", "endpoint", "misses")

    def __init__(self, channel: Any, endpoint: str, calls: dict[str, Call]) -> None:
        self.channel, self.endpoint, self.calls = channel, endpoint, calls
        self.misses = 0  # attempts in a row without an answer


@final
class Transport:
    """The calls.  Any thread may use it; a forked child may not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.messages: Messages = load_messages()
        self._grpc = load_grpc()
        #: What an attempt raises that did not work (gRPC raises ValueError on a channel that was closed meanwhile).
        self.failures: tuple[type[Exception], ...] = (self._grpc.RpcError, ValueError)
        # Where there is no other member to ask, giving up on an answer early would only double the questions.
        alone = len(settings.endpoints) == 1
        self._patience = max(settings.dial_timeout_seconds, settings.operation_timeout_seconds / 2 if alone else 0.0)
        self._credentials = _load_credentials(self._grpc, settings)
        self._lock = threading.Lock()
        # Members of a large job spread over the cluster.
        self._index = random.randrange(len(settings.endpoints))
        self._connection: Connection | None = None
        self._watching: set[Connection] = set()
        self._is_away = False  # the last call ended without an answer
        self._token = ""
        self._closed = threading.Event()
        self._is_foreign = False
        close_in_children(self)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """Close the connection; calls that are under way raise StoreLostError."""
        self._closed.set()
        with self._lock:
            open_ones = [*self._watching, self._connection]
            self._connection = None
        for connection in open_ones:
            if connection is not None:
                connection.channel.close()

    def close_after_fork(self) -> list[Any]:
        """Make this copy, in a forked child, refuse; returns what must never be torn down there."""
        self._is_foreign = True
        self._closed.set()
        return [self._connection, *self._watching]

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, method: str, request: Any, deadline: float) -> Any:
        """Send ``request``, again and again until it is answered or ``deadline`` (monotonic seconds) has passed.

        Once a call has ended without an answer, the next ones ask each member once only, until one answers: whoever
        calls tries again by itself, and what it has in line must not take a deadline each.

        Raises:
            StoreUnavailableError: no answer in time; the message names what was tried.
            StoreLostError: this transport is closed.
            UsageError, RendezvousStateError: an answer that trying again cannot change.
            RefusedError: an answer that the caller knows what to do with.
        """
        pause, patience = _FIRST_PAUSE_SECONDS, self._patience
        tried: dict[str, str] = {}
        dialled = 0
        while True:
            known = self._connection
            connection = self._connect()
            dialled += connection is not known
            timeout = max(0.05, min(patience, deadline - monotonic()))
            try:
                metadata = self._metadata(connection, method, timeout)
                answer = connection.calls[method](request, timeout=timeout, metadata=metadata)
                connection.misses = 0
                self._is_away = False
                return answer
            except self.failures as error:
                trouble, tried[connection.endpoint] = self._judge(error)
            self._note(connection, trouble)
            # An answer that is merely slow must have a chance; it need not come twice.
            patience *= 2
            # A connection that another thread has dialled may rest between two attempts of its own: that tells nothing.
            enough = self._is_away and dialled >= len(self._settings.endpoints)
            if self._is_away:
                self._give_up(connection)
            seconds = 0.0 if enough else min(pause * random.uniform(0.5, 1.5), max(0.0, deadline - monotonic()))
            if self._closed.wait(seconds):
                continue  # to be told so
            if enough or monotonic() >= deadline:
                self._is_away = True
                self._give_up(connection)
                story = "; ".join(f"{where}: {problem}" for where, problem in tried.items())
                raise StoreUnavailableError(f"no answer from etcd in time ({story})")
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def begin_watch(self) -> Connection:
        """Open a connection to watch over.

        Closing its channel is how a watch is ended: gRPC keeps a connection for good whose stream was cancelled.
        """
        with self._lock:
            self._check_open()
            connection = self._dial()
            self._watching.add(connection)
            return connection

    def watch(self, connection: Connection, request: Any, timeout: float) -> Any:
        """Send a watch's ``request``; returns the stream of answers.  What fails is in :attr:`failures`.

        A member that has lost its leader ends the stream, instead of staying silent for ever.
        """
        metadata = self._metadata(connection, "Watch", self._settings.dial_timeout_seconds)
        return connection.calls["Watch"](request, timeout=timeout, metadata=(*metadata, ("hasleader", "true")))

    def end_watch(self, connection: Connection, stream: Any) -> None:
        """Close what :meth:`begin_watch` has opened, and read ``stream``, if there is one, to its end."""
        connection.channel.close()
        with self._lock:
            self._watching.discard(connection)
        try:
            for _ in stream or ():
                pass
        except self.failures:
            pass  # the end of a stream whose channel is closed is an error

    def note_failure(self, connection: Connection, error: BaseException) -> None:
        """Draw the consequence of a failed watch; whether it failed for good is for the next call to find out."""
        try:
            trouble, _ = self._judge(error)
        except (QuorateError, RefusedError):
            return
        self._note(connection, trouble)

    def _judge(self, error: BaseException) -> tuple[Trouble, str]:
        """Return what an attempt has met, and a sentence; raises what trying again cannot change."""
        if isinstance(error, ValueError):
            if "closed" not in str(error):
                raise error
            return Trouble.BUSY, "the connection was given up"  # by another thread, for a new one
        code, details = error.code().name, error.details() or ""  # type: ignore[attr-defined] # gRPC errors are calls
        if code == "CANCELLED":
            return Trouble.BUSY, "the connection was given up"
        if code == "DEADLINE_EXCEEDED":
            return Trouble.AWAY, "no answer"
        verdict = judge(code, details, self._settings)
        if isinstance(verdict, Trouble):
            return verdict, details[:300]
        raise verdict from None

    def _note(self, connection: Connection, trouble: Trouble) -> None:
        """Draw the consequence of an attempt's trouble: another member, another token, or none."""
        if trouble is Trouble.TOKEN:
            with self._lock:
                self._token = ""
        if trouble is not Trouble.AWAY:
            return
        connection.misses += 1
        # A connection to the only member heals by itself, unless it hangs.
        if len(self._settings.endpoints) == 1 and connection.misses == 1:
            return
        with self._lock:
            if self._connection is not None and self._connection.endpoint != connection.endpoint:
                return  # another thread has moved on already
            given_up = [other for other in self._watching if other.endpoint == connection.endpoint]
            if self._connection is not None:
                given_up.append(self._connection)
            self._connection = None
            self._index = (self._index + 1) % len(self._settings.endpoints)
        for other in given_up:
            other.channel.close()

    def _give_up(self, connection: Connection) -> None:
        with self._lock:
            if self._connection is not connection:
                return  # another thread has moved on already
            self._connection = None
        connection.channel.close()

    # --- connecting ---------------------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        with self._lock:
            self._check_open()
            if self._connection is None:
                self._connection = self._dial()
            return self._connection

    def _check_open(self) -> None:
        if self._is_foreign:
            raise StoreLostError(
                "this connection to etcd belongs to the process that this one was forked from; open another one here"
            )
        if self._closed.is_set():
            raise StoreLostError(f"this connection to etcd at {self._settings.where} was closed")

    def _dial(self) -> Connection:
        endpoint = self._settings.endpoints[self._index]
        kind = "ipv6" if ":" in endpoint.host else "ipv4" if _is_ipv4(endpoint.host) else "dns"
        target = f"dns:///{endpoint}" if kind == "dns" else f"{kind}:{endpoint}"
        if self._credentials is None:
            channel = self._grpc.insecure_channel(target, options=_OPTIONS)
        else:
            channel = self._grpc.secure_channel(target, self._credentials, options=_OPTIONS)
        return Connection(channel, str(endpoint), self._calls(channel))

    def _calls(self, channel: Any) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        for name, (service, request, answer) in _METHODS.items():
            make = channel.unary_stream if name == "Watch" else channel.unary_unary
            calls[name] = make(
                f"/etcdserverpb.{service}/{name}",
                getattr(self.messages, request).SerializeToString,
                getattr(self.messages, answer).FromString,
            )
        return calls

    def _metadata(self, connection: Connection, method: str, timeout: float) -> tuple[tuple[str, str], ...]:
        user, password = self._settings.user, self._settings.password
        if not user or method == "Authenticate":
            return ()
        with self._lock:
            token = self._token
        if not token:
            request = self.messages.AuthenticateRequest(name=user, password=password)
            token = connection.calls["Authenticate"](request, timeout=timeout).token
            with self._lock:
                self._token = token
        return (("token", token),)


def _is_ipv4(host: str) -> bool:
    parts = host.split(".")
    return len(parts) == 4 and all(part.isdecimal() for part in parts)


def _load_credentials(grpc: Any, settings: Settings) -> Any:
    if not settings.secure:
        return None
    ca_cert = _read("ca_cert", settings.ca_cert)
    return grpc.ssl_channel_credentials(ca_cert, _read("key", settings.key), _read("cert", settings.cert))


def _read(name: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"the rendezvous setting {name}={path!r} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise UsageError(f"the rendezvous setting {name}={path!r} is no PEM file")
    return content
