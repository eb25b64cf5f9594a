"""The core's store contract on a TCPStore.

A TCPStore lives in the memory of the node that hosts it, and dies with it.  It has no "create" and no "get if there":
both are made of its compare-and-set, which writes to an absent key only where the expected value is empty, and answers
with the value that is there afterwards.  So every value is written behind a stamp that no other write shares: equal
values cannot make two winners, and an expected value that is never written reads without writing.  Counters
(``add``) are plain digits, distinguished from stamped values by their first byte.

What does not live here: finding the endpoint and opening connections (:mod:`._opening`, :mod:`._connection`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, final

from quorate.clock import monotonic
from quorate.errors import StoreLostError, StoreUnavailableError
from quorate.net import close_in_children, format_endpoint
from quorate.rendezvous import LastWordWriter, RendezvousParameters

from ._connection import Connection
from ._guarded_store import GuardedStore
from ._hosting import register_local_host
from ._lanes import Lanes
from ._last_word import write_last_words
from ._linger import await_departures
from ._opening import Opened, open_connections, reconnect
from ._requests import compare_set_request
from ._settings import LONGEST_TIMEOUT_SECONDS, Settings
from ._values import ABSENT, IDENTITY_KEY, STAMP_BYTES, STAMPED, first_line, prefix_of, read_one, strip

_T = TypeVar("_T")

# The server reads a request again from its start with every piece that arrives: large requests cost their square.
_KEYS_AT_ONCE = 256
_BYTES_AT_ONCE = 48 * 1024
_FEW_KEYS = 4
# A node writes its heartbeat again and again, and little else.
_KEYS_KNOWN = 8
# Without a duplicate of the socket nothing can end a wait from outside; it then looks up this often.
_SLICE_SECONDS = 1.0
_RETIRE_TIMEOUT_SECONDS = 0.2


def open_store(parameters: RendezvousParameters) -> C10dStore:
    """Host or join the TCPStore at the endpoint of ``parameters``.

    Raises:
        UsageError: settings that cannot be used.
        StoreUnavailableError: nothing could be reached (or hosted) within ``connect_timeout``.
    """
    settings = Settings.from_parameters(parameters)
    return C10dStore(settings, open_connections(settings))


@final
class C10dStore:
    """One node's handle on the store.  Has the abilities ``batch``, ``interrupt`` and ``last word``.

    ``endpoint`` is where the store is (with the real port where the setting said 0); ``is_host`` tells whether it
    lives in this process.  Two connections: one to work, and one to wait, opened by the first wait; a third one to work
    once the network was slow (:mod:`._lanes`).
    """

    def __init__(self, settings: Settings, opened: Opened) -> None:
        self._settings = settings
        self._address, self._port = opened.address, opened.port
        self.identity = opened.identity
        self._server = opened.connection.store if opened.is_host else None
        # The host's own connection loses nothing.
        self._lanes = None if opened.is_host else Lanes(opened.identity, settings.operation_timeout_seconds)
        self.is_host = opened.is_host
        self.endpoint = format_endpoint(opened.address if settings.port == 0 else settings.host, opened.port)
        self._prefix = prefix_of(settings.run_id)
        self._writer = os.urandom(8)
        self._writes = 0
        self._unsure: dict[str, bytes] = {}
        self._known: dict[str, bytes] = {}  # what this handle has put last under a few keys
        self._written: set[str] = set()
        self._working = threading.RLock()
        self._work: Connection | None = opened.connection
        self._state = threading.Lock()
        self._waiter: Connection | None = None
        self._waiting = False
        self._interrupted = False
        self._closed = False
        self._lost = ""
        close_in_children(self)
        if self.is_host:
            register_local_host(self)

    # --- the contract ---------------------------------------------------------------------------------------------

    def create(self, key: str, value: bytes) -> bool:
        """Write ``key`` once; returns whether this call wrote it.

        After StoreUnavailableError the same call again tells the truth about both: it writes the same stamp.
        """
        full = self._prefix + key
        stamped = self._unsure.pop(full, b"")
        if stamped[STAMP_BYTES:] != value or not stamped:
            stamped = self._stamp(value)
        try:
            (present,) = self._compare_set([(full, b"", stamped)])
        except StoreUnavailableError:
            self._unsure[full] = stamped
            raise
        self._note(full)
        return present == stamped

    def put(self, key: str, value: bytes) -> None:
        """Write ``key``; the last write wins.

        A set is not answered, so that it takes a question behind it to know that it has arrived.  A compare-and-set
        against what this handle wrote there last is one request with an answer; where something else is there, set.
        """
        full, stamped = self._prefix + key, self._stamp(value)
        with self._working:
            known = self._known.pop(full, b"")
            if self._compare_set([(full, known, stamped)]) == [stamped]:
                self._note(full)
            else:
                self._put_batch([full], [stamped])
            self._known[full] = stamped
            if len(self._known) > _KEYS_KNOWN:
                del self._known[next(iter(self._known))]

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write ``items`` in as few round trips as the server digests well; not atomic."""
        keys: list[str] = []
        values: list[bytes] = []
        size = 0
        for key, value in items:
            if keys and (len(keys) >= _KEYS_AT_ONCE or size + len(value) > _BYTES_AT_ONCE):
                self._put_batch(keys, values)
                keys, values, size = [], [], 0
            keys.append(self._prefix + key)
            values.append(self._stamp(value))
            size += len(value) + len(key)
        if keys:
            self._put_batch(keys, values)

    def _put_batch(self, keys: list[str], values: list[bytes]) -> None:
        def write(store: Any) -> None:
            if len(keys) > 1 and hasattr(store, "multi_set"):
                store.multi_set(keys, values)
            else:
                for key, value in zip(keys, values, strict=True):
                    store.set(key, value)
            # A set is sent and not answered: into a connection that has just broken it vanishes without an error.
            # The server works off a connection in order, so the answer to a question stands for what went before.
            store.check(keys[-1:])

        self._run(write)
        for key in keys:
            self._note(key)

    def add(self, key: str, amount: int) -> int:
        """Add to the counter ``key``; returns the new count.  After StoreUnavailableError it may have been added."""
        full = self._prefix + key
        count = int(self._run(lambda store: store.add(full, amount)))
        self._note(full)
        return count

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of ``keys`` in one round trip for each 256 of them.

        On the host, and where torch's socket was not found: two for many that exist, a few more for each that does not.
        """
        full = [self._prefix + key for key in keys]
        result: list[bytes | None] = []
        for start in range(0, len(full), _KEYS_AT_ONCE):
            chunk = full[start : start + _KEYS_AT_ONCE]
            if self._lanes is None:
                result += self._run(partial(_read, keys=chunk))
            else:
                values = self._compare_set([(key, ABSENT, ABSENT) for key in chunk])
                result += [None if value == ABSENT else strip(value) for value in values]
        return result

    def wait(self, key: str, timeout: float) -> bytes | None:
        """Block until ``key`` exists; ``None`` after ``timeout`` seconds or an :meth:`interrupt`."""
        full = self._prefix + key
        deadline = monotonic() + timeout
        with self._state:
            if self._interrupted:
                self._interrupted = False
                return None
            self._waiting = True
        try:
            while True:
                try:
                    found = self._wait_once(full, deadline)
                except _InterruptedError:
                    return None
                if found is not None or monotonic() >= deadline:
                    return found
        finally:
            with self._state:
                self._waiting = False
                broken = self._interrupted
                self._interrupted = False
            if (broken or self._closed) and self._waiter is not None:
                waiter, self._waiter = self._waiter, None
                waiter.close()

    def interrupt(self) -> None:
        """Make a wait that is under way return ``None`` soon; without one, the next wait returns at once."""
        with self._state:
            self._interrupted = True
            if self._waiting and self._waiter is not None:
                self._waiter.shut()

    def last_word_writer(self) -> LastWordWriter:
        """Return what writes for this node if its agent is killed."""
        return partial(write_last_words, self._address, self._port, self._prefix, self.identity)

    def delete(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``.

        An older torch's TCPStore cannot list its keys; what this handle itself has written is then removed.
        """
        start = self._prefix + prefix

        def remove(store: Any) -> None:
            known = store.list_keys() if hasattr(store, "list_keys") else list(self._written)
            for key in known:
                if key.startswith(start):
                    store.delete_key(key)

        self._run(remove)
        self._written = {key for key in self._written if not key.startswith(start)}

    def close(self) -> None:
        """Leave.  The host first lets the others go, for at most ``linger_timeout`` seconds; its server ends then."""
        with self._state:
            if self._closed:
                return
            self._closed = True
        self.interrupt()
        with self._state:
            idle = None if self._waiting else self._waiter
            if idle is not None:
                self._waiter = None
        if idle is not None:
            idle.close()
        if self._server is not None and self._settings.linger_timeout_seconds > 0:
            own = [self._work.local_port() if self._work is not None else None]
            await_departures(self._port, own, monotonic() + self._settings.linger_timeout_seconds)
        # A call that is under way on the working connection is bounded by the operation timeout.
        with self._working:
            work, self._work, self._server = self._work, None, None
            if self._lanes is not None:
                self._lanes.close()
        if work is not None:
            work.close()

    def retire(self, other_ports: Sequence[int | None]) -> bool:
        """End the store if only this handle and the connections from ``other_ports`` use it; returns whether it did."""
        own = [connection.local_port() for connection in (self._work, self._waiter) if connection is not None]
        if not await_departures(self._port, [*own, *other_ports], monotonic() + _RETIRE_TIMEOUT_SECONDS):
            return False
        self.close()
        return True

    def close_after_fork(self) -> None:
        """Refuse every call in a forked child: the connections belong to its parent."""
        self._lost = f"this handle on the c10d store at {self.endpoint} belongs to the parent of this process"
        self._working, self._state = threading.RLock(), threading.Lock()

    # --- working --------------------------------------------------------------------------------------------------

    def _stamp(self, value: bytes) -> bytes:
        with self._state:
            self._writes += 1
            return STAMPED + self._writer + self._writes.to_bytes(8, "big") + value

    def _note(self, key: str) -> None:
        # Only where delete() will need it: this set lives as long as the job.
        if self._work is not None and not hasattr(self._work.store, "list_keys"):
            self._written.add(key)

    def _compare_set(self, writes: Sequence[tuple[str, bytes, bytes]]) -> list[bytes]:
        """Write each key that holds what is expected of it, and return what is there; in one round trip if possible."""
        requests = [compare_set_request(*write) for write in writes]

        def ask(connection: Connection) -> list[bytes]:
            if self._lanes is None or connection.sock is None:
                return [bytes(connection.store.compare_set(*write)) for write in writes]
            return self._lanes.ask(connection.sock, requests)

        return self._use(ask)

    def _run(self, operation: Callable[[Any], _T]) -> _T:
        def run(connection: Connection) -> _T:
            if self._lanes is not None and connection.sock is not None:
                self._lanes.settle(connection.sock)
            return operation(connection.store)

        return self._use(run)

    def _use(self, operation: Callable[[Connection], _T]) -> _T:
        with self._working:
            self._refuse_if_over()
            if self._work is None:
                self._work = self._restore()
            try:
                return operation(self._work)
            except RuntimeError as error:
                broken, self._work = self._work, None
                broken.close()
                # Whether the host is gone is worth knowing at once; if it is not, the next call finds the way open.
                self._work = self._restore()
                raise StoreUnavailableError(
                    f"the connection to the c10d store at {self.endpoint} failed ({first_line(error)}) and was "
                    "opened again; the last operation may or may not have been applied"
                ) from error

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise StoreLostError(f"this handle on the c10d store at {self.endpoint} is closed")
        if self._lost:
            raise StoreLostError(self._lost)

    def _restore(self, has_failed: bool = True) -> Connection:
        """Open a connection to the same store again, or a second one where none ``has_failed``.

        Raises:
            StoreLostError: it is gone, or another one has taken its place.
            StoreUnavailableError: its host does not answer.
        """
        limit = min(3.0, self._settings.operation_timeout_seconds)
        try:
            return reconnect(
                self._address,
                self._port,
                self.identity,
                monotonic() + limit,
                self._settings.operation_timeout_seconds,
                has_failed,
            )
        except StoreLostError as error:
            self._lost = (
                f"the node that hosted the c10d store ({self.endpoint}) is gone, and the store with it: {error}. "
                "Start the job again; with the etcd backend a job survives the loss of any node"
            )
            raise StoreLostError(self._lost) from error

    # --- waiting --------------------------------------------------------------------------------------------------

    def _wait_once(self, key: str, deadline: float) -> bytes | None:
        """Return what is at ``key``; ``None`` at ``deadline`` or earlier, so that the caller looks at the clock."""
        has_failed = False
        while True:
            waiter = self._open_waiter(has_failed)
            left = min(deadline - monotonic(), LONGEST_TIMEOUT_SECONDS if waiter.sock is not None else _SLICE_SECONDS)
            try:
                if left > 0:
                    # A timeout of 0 ms would mean none at all.
                    waiter.store.wait([key], timedelta(milliseconds=max(1, int(left * 1000))))
                return read_one(waiter.store, key)
            except RuntimeError as error:
                if self._interrupted:
                    raise _InterruptedError from None
                if type(error).__name__ == "DistStoreError" and "timeout" in str(error):
                    return None
            # It broke.  Nothing is lost: a wait has no effect.
            self._waiter, has_failed = None, True
            waiter.close()

    def _open_waiter(self, has_failed: bool) -> Connection:
        with self._state:
            if self._waiter is not None:
                return self._waiter
        self._refuse_if_over()
        waiter = self._restore(has_failed)
        if not GuardedStore.has_called("wait"):
            with suppress(RuntimeError):  # the connection is broken, which the caller's wait finds out
                waiter.store.wait([IDENTITY_KEY], timedelta(seconds=_SLICE_SECONDS))
        with self._state:
            self._waiter = waiter
            if self._interrupted:
                raise _InterruptedError
        return waiter


@final
class _InterruptedError(Exception):
    """``interrupt`` was called."""


def _read(store: Any, keys: Sequence[str]) -> list[bytes | None]:
    """Return the values of ``keys``.  One check and one read where all exist; else the halves are read alike."""
    if len(keys) <= _FEW_KEYS or not hasattr(store, "multi_get"):
        return [read_one(store, key) for key in keys]
    if store.check(list(keys)):
        return [strip(bytes(value)) for value in store.multi_get(list(keys))]
    middle = len(keys) // 2
    return _read(store, keys[:middle]) + _read(store, keys[middle:])
