"""Calls to an etcd cluster: one channel for operations, one for each wait, and other members when one does not answer.

Each attempt has a short deadline and each call a long one.  Every request may be sent twice, so each is built to have
the same effect when it is applied twice.

What does not live here: what the requests mean (:mod:`.store`, :mod:`.member`, :mod:`.lease`), and which answers can be
tried again (:mod:`.answers`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, final

from attrs import define

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError
from quorate.net import close_in_children

from .._settings import Settings
from .._tls import make_tls_context
from .answers import Trouble, judge
from .http2 import CallError
from .messages import Messages, load_messages
from .transport import Channel

_Call = Callable[..., Any]

_METHODS = {
    "Txn": ("KV", "TxnResponse"),
    "LeaseGrant": ("Lease", "LeaseGrantResponse"),
    "LeaseRevoke": ("Lease", "LeaseRevokeResponse"),
    # A stream in etcd's definition, of which one request and one answer are used.
    "LeaseKeepAlive": ("Lease", "LeaseKeepAliveResponse"),
    "Authenticate": ("Auth", "AuthenticateResponse"),
    "Watch": ("Watch", "WatchResponse"),
    # Only for the members that a job runs itself.
    "MemberList": ("Cluster", "MemberListResponse"),
    "MemberAdd": ("Cluster", "MemberAddResponse"),
    "MemberRemove": ("Cluster", "MemberRemoveResponse"),
    "MemberPromote": ("Cluster", "MemberPromoteResponse"),
    "Status": ("Maintenance", "StatusResponse"),
    "MoveLeader": ("Maintenance", "MoveLeaderResponse"),
}
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_LONGEST_TOKEN = 8192


@final
@define(eq=False)
class Connection:
    """A channel to one member, and the calls on it."""

    channel: Channel
    endpoint: str
    calls: dict[str, _Call]
    misses: int = 0  # attempts in a row without an answer


@final
class Client:
    """Calls etcd.  Any thread may use it; a forked child may not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.messages: Messages = load_messages()
        # With a single member, ending an attempt early would only send the same request twice.
        has_one_member = len(settings.endpoints) == 1
        self._attempt_timeout_seconds = max(
            settings.dial_timeout_seconds, settings.operation_timeout_seconds / 2 if has_one_member else 0.0
        )
        self._tls = make_tls_context(settings, ["h2"])
        self._lock = threading.Lock()
        # The nodes of a large job spread over the members.
        self._index = 0 if settings.begins_with_first else random.randrange(len(settings.endpoints))
        self._connection: Connection | None = None
        self._watching: set[Connection] = set()
        self._is_away = False  # the last call ended without an answer
        self._token = ""
        self._closed = threading.Event()
        self._is_forked_copy = False
        close_in_children(self)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """Close all connections; calls that are under way raise StoreLostError."""
        self._closed.set()
        with self._lock:
            connections = [*self._watching, self._connection]
            self._connection = None
        for connection in connections:
            if connection is not None:
                connection.channel.close()

    def close_after_fork(self) -> None:
        """Close this copy in a forked child; every later call raises StoreLostError."""
        self._is_forked_copy = True
        self._closed.set()
        for connection in [self._connection, *self._watching]:
            if connection is not None:
                connection.channel.close_after_fork()

    # --- calls --------------------------------------------------------------------------------------------------------

    def transact(self, request: Any, deadline: float) -> Any:
        """Carry out a transaction; return the answer, which has one response for each operation.

        Raises:
            StoreUnavailableError: the answer does not fit the request; otherwise as :meth:`call`.
        """
        answer = self.call("Txn", request, deadline)
        operations: Sequence[Any] = request.success if answer.succeeded else request.failure
        fits = len(answer.responses) == len(operations) and all(
            response.WhichOneof("response") == f"response_{operation.WhichOneof('request').removeprefix('request_')}"
            and _holds_what_was_asked(operation, response)
            for operation, response in zip(operations, answer.responses, strict=True)
        )
        if not fits:
            raise StoreUnavailableError(
                f"the server at {self._settings.where} answers a transaction with something else than was asked for; "
                "make sure that it is etcd"
            )
        return answer

    def call(self, method: str, request: Any, deadline: float) -> Any:
        """Send ``request`` until it is answered or ``deadline`` (monotonic seconds) has passed.

        Once a call has ended without an answer, the next calls ask each member only once, until one answers: the caller
        retries by itself, and its other operations must not take a deadline each.

        Raises:
            StoreUnavailableError: no answer in time; the message names the members that were tried.
            StoreLostError: this client is closed.
            UsageError, RendezvousStateError: an answer that a retry cannot change.
            RefusedError: an answer that the caller acts on.
        """
        pause, attempt_timeout = _FIRST_PAUSE_SECONDS, self._attempt_timeout_seconds
        tried: dict[str, str] = {}
        dialled = 0
        while True:
            known = self._connection
            connection = self._connect()
            dialled += connection is not known
            is_own = self._is_own(connection)
            timeout = self._settings.own_member_seconds if is_own else attempt_timeout
            timeout = max(0.05, min(timeout, deadline - monotonic()))
            try:
                metadata = self._metadata(connection, method, timeout)
                answer = connection.calls[method](request, timeout=timeout, metadata=metadata)
                connection.misses = 0
                self._is_away = False
                return answer
            except CallError as error:
                trouble, tried[connection.endpoint] = self._judge(error)
            self._react(connection, trouble)
            # The answer may only be slow.
            attempt_timeout *= 1 if is_own else 2
            # A connection that another thread has opened may be between two attempts of that thread.
            is_enough = self._is_away and dialled >= len(self._settings.endpoints)
            if self._is_away:
                self._give_up(connection)
            seconds = 0.0 if is_enough else min(pause * random.uniform(0.5, 1.5), max(0.0, deadline - monotonic()))
            if self._closed.wait(seconds):
                continue  # _connect raises
            if is_enough or monotonic() >= deadline:
                self._is_away = True
                self._give_up(connection)
                story = "; ".join(f"{where}: {problem}" for where, problem in tried.items())
                raise StoreUnavailableError(f"no answer from etcd in time ({story})")
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def begin_watch(self) -> Connection:
        """Open a channel for a watch.  Another thread ends the watch by closing the channel."""
        with self._lock:
            self._check_open()
            connection = self._dial()
            self._watching.add(connection)
            return connection

    def watch(self, connection: Connection, request: Any, timeout: float) -> Any:
        """Send a watch's ``request``; return the stream of answers, which raises CallError.

        A member that has lost its leader ends the stream.  Without ``hasleader`` it would stay silent.
        """
        metadata = self._metadata(connection, "Watch", self._settings.dial_timeout_seconds)
        return connection.calls["Watch"](request, timeout=timeout, metadata=(*metadata, ("hasleader", "true")))

    def end_watch(self, connection: Connection, stream: Any) -> None:
        """Close what :meth:`begin_watch` has opened, and ``stream``, if there is one."""
        connection.channel.close()
        with self._lock:
            self._watching.discard(connection)
        if stream is not None:
            stream.close()

    def note_watch_failure(self, connection: Connection, error: CallError) -> None:
        """React to a failed watch.  Whether it failed for good is seen at the next call."""
        try:
            trouble, _ = self._judge(error)
        except QuorateError:
            return
        self._react(connection, trouble)

    def _judge(self, error: CallError) -> tuple[Trouble, str]:
        """Return the problem of an attempt, and a sentence; raise what a retry cannot change."""
        code, details = error.code, error.details
        if code == "CANCELLED":
            return Trouble.BUSY, "the connection was closed"
        if code == "DEADLINE_EXCEEDED":
            return Trouble.AWAY, "no answer"
        verdict = judge(code, details, self._settings)
        if isinstance(verdict, Trouble):
            return verdict, details[:300]
        raise verdict from None

    def _react(self, connection: Connection, trouble: Trouble) -> None:
        """Choose another member, or request another token, or do nothing, as ``trouble`` demands."""
        if trouble is Trouble.TOKEN:
            with self._lock:
                self._token = ""
        if trouble is not Trouble.AWAY:
            return
        connection.misses += 1
        # A channel to the only member connects again by itself; it is replaced only where it hangs.
        if len(self._settings.endpoints) == 1 and connection.misses == 1:
            return
        asked_seconds = connection.misses * self._settings.own_member_seconds
        if self._is_own(connection) and not self._is_away and asked_seconds < self._settings.dial_timeout_seconds:
            return
        with self._lock:
            if self._connection is not None and self._connection.endpoint != connection.endpoint:
                return  # another thread has chosen another member
            given_up = [other for other in self._watching if other.endpoint == connection.endpoint]
            if self._connection is not None:
                given_up.append(self._connection)
            self._connection = None
            self._index = (self._index + 1) % len(self._settings.endpoints)
        for other in given_up:
            other.channel.close()

    def _is_own(self, connection: Connection) -> bool:
        """Return whether this is the member of this node."""
        return self._settings.own_member_seconds > 0 and connection.endpoint == str(self._settings.endpoints[0])

    def _give_up(self, connection: Connection) -> None:
        with self._lock:
            if self._connection is not connection:
                return  # another thread has chosen another member
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
        if self._is_forked_copy:
            raise StoreLostError(
                "this connection to etcd belongs to the process that this one was forked from; open another one here"
            )
        if self._closed.is_set():
            raise StoreLostError(f"this connection to etcd at {self._settings.where} was closed")

    def _dial(self) -> Connection:
        endpoint = self._settings.endpoints[self._index]
        channel = Channel(endpoint, self._tls)
        return Connection(channel, str(endpoint), {name: self._make_call(channel, name) for name in _METHODS})

    def _make_call(self, channel: Channel, name: str) -> _Call:
        service, answer = _METHODS[name]
        path, read = f"/etcdserverpb.{service}/{name}", getattr(self.messages, answer).FromString

        def call(request: Any, timeout: float, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
            return _decode(read, channel.call(path, request.SerializeToString(), timeout, metadata))

        def stream(request: Any, timeout: float, metadata: tuple[tuple[str, str], ...] = ()) -> Iterator[Any]:
            with closing(channel.stream(path, request.SerializeToString(), timeout, metadata)) as answers:
                for raw in answers:
                    yield _decode(read, raw)

        return stream if name == "Watch" else call

    def _metadata(self, connection: Connection, method: str, timeout: float) -> tuple[tuple[str, str], ...]:
        user, password = self._settings.user, self._settings.password
        if not user or method == "Authenticate":
            return ()
        with self._lock:
            token = self._token
        if not token:
            request = self.messages.AuthenticateRequest(name=user, password=password)
            token = connection.calls["Authenticate"](request, timeout=timeout).token
            if len(token) > _LONGEST_TOKEN or not (token.isascii() and token.isprintable()):
                raise CallError("INTERNAL", "the member answered a login with something else than a token")
            with self._lock:
                self._token = token
        return (("token", token),)


def _holds_what_was_asked(operation: Any, response: Any) -> bool:
    """Return whether the records of a read are of the key that was asked for, and not more than one."""
    if operation.WhichOneof("request") != "request_range":
        return True
    request, records = operation.request_range, response.response_range.kvs
    return len(records) <= 1 and all(
        record.key.startswith(request.key) if request.range_end else record.key == request.key for record in records
    )


def _decode(read: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return read(raw)
    except Exception as error:  # the classes differ between protobuf's versions
        raise CallError("INTERNAL", f"an answer cannot be read: {error}") from None
