"""Calls to an etcd cluster: one channel to work and one to wait, and others when a member does not answer.

Each attempt has a short deadline and each call a long one; every request may be sent twice, so whoever builds one makes
sure that being applied twice is being applied once.  What does not live here: what the requests mean (:mod:`._job`,
:mod:`._store`) and which answers can be tried again (:mod:`._answers`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError

from ._answers import RefusedError, Trouble, judge
from ._channel import Channel
from ._definitions import Messages, load_messages
from ._dialling import Resolver, make_trust
from ._fork import close_in_children
from ._http2 import CallError
from ._settings import Settings

__all__ = ["Call", "Connection", "Transport"]

Call = Callable[..., Any]

_METHODS = {
    "Txn": ("KV", "TxnResponse"),
    "LeaseGrant": ("Lease", "LeaseGrantResponse"),
    "LeaseRevoke": ("Lease", "LeaseRevokeResponse"),
    # A stream in etcd's definition, of which one request and one answer are used.
    "LeaseKeepAlive": ("Lease", "LeaseKeepAliveResponse"),
    "Authenticate": ("Auth", "AuthenticateResponse"),
    "Watch": ("Watch", "WatchResponse"),
}
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5


@final
class Connection:
    """A channel to one member, and the calls on it."""

    __slots__ = ("calls", "channel", "endpoint", "misses")

    def __init__(self, channel: Channel, endpoint: str, calls: dict[str, Call]) -> None:
        self.channel, self.endpoint, self.calls = channel, endpoint, calls
        self.misses = 0  # attempts in a row without an answer


@final
class Transport:
    """The calls.  Any thread may use it; a forked child may not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.messages: Messages = load_messages()
        # Where there is no other member to ask, giving up on an answer early would only double the questions.
        alone = len(settings.endpoints) == 1
        self._patience = max(settings.dial_timeout_seconds, settings.operation_timeout_seconds / 2 if alone else 0.0)
        self._trust, self._resolver = make_trust(settings), Resolver()
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

    def close_after_fork(self) -> None:
        """Make this copy, in a forked child, refuse."""
        self._is_foreign = True
        self._closed.set()
        for connection in [self._connection, *self._watching]:
            if connection is not None:
                connection.channel.close_after_fork()

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
            except CallError as error:
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
        """Open a channel to watch over.  Closing it is how another thread ends the watch."""
        with self._lock:
            self._check_open()
            connection = self._dial()
            self._watching.add(connection)
            return connection

    def watch(self, connection: Connection, request: Any, timeout: float) -> Any:
        """Send a watch's ``request``; returns the stream of answers, which raises CallError.

        A member that has lost its leader ends the stream, instead of staying silent for ever.
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

    def note_failure(self, connection: Connection, error: CallError) -> None:
        """Draw the consequence of a failed watch; whether it failed for good is for the next call to find out."""
        try:
            trouble, _ = self._judge(error)
        except (QuorateError, RefusedError):
            return
        self._note(connection, trouble)

    def _judge(self, error: CallError) -> tuple[Trouble, str]:
        """Return what an attempt has met, and a sentence; raises what trying again cannot change."""
        code, details = error.code, error.details
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
        channel = Channel(endpoint, self._trust, self._resolver)
        return Connection(channel, str(endpoint), {name: self._make_call(channel, name) for name in _METHODS})

    def _make_call(self, channel: Channel, name: str) -> Call:
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
            with self._lock:
                self._token = token
        return (("token", token),)


def _decode(read: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return read(raw)
    except Exception as error:  # protobuf's kinds of it differ from version to version
        raise CallError("INTERNAL", f"an answer cannot be read: {error}") from None
