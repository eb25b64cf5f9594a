"""EtcdStore: the core's store contract on etcd's API v3.

Every operation is one transaction, built so that being applied twice is being applied once; then an attempt without an
answer can simply be sent again:

* ``create`` compares the key's create revision with 0 and writes a value that carries a stamp of its own: who finds
  that stamp there has won, whichever attempt did it.
* ``add`` by one does not compare at all: it writes the counter's key again, and the count is the number of writes that
  etcd itself keeps of every key (``version``), so a thousand nodes at once never make each other retry.  The same
  transaction writes a marker into this member's own key, by which a second attempt sees that the first was applied.
* ``wait`` reads, watches, and reads again if anything was written before the watch began: no write is missed.

What does not live here: which incarnation of the job the keys belong to (:mod:`._job`).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import StoreCorruptError, StoreLostError, StoreUnavailableError, UsageError
from quorate.rendezvous import RendezvousParameters

from ._answers import RefusedError
from ._job import Membership
from ._settings import Settings
from ._transport import Transport
from ._watch import Watcher

__all__ = ["EtcdStore", "open_store"]

# The first byte of a value tells what it is: put, created (a stamp follows), or a counter (an offset follows).
_PUT, _CREATED, _COUNTER = b"\x01", b"\x02", b"\x03"
_STAMP_BYTES = 16
# etcd takes 128 operations and 1.5 MiB in one request, unless it is told otherwise.
_OPERATIONS_AT_ONCE = 120
_BYTES_AT_ONCE = 1_200_000
_LARGEST_VALUE = (1 << 20) + 64  # with a signature


def open_store(parameters: RendezvousParameters) -> EtcdStore:
    """Connect to etcd and become a member of the job.

    Raises:
        UsageError: settings that cannot be used, or refused credentials.
        StoreUnavailableError: no answer within ``connect_timeout``.
        RendezvousStateError: another job runs under this run id.
    """
    return EtcdStore(Settings.from_parameters(parameters))


@final
class EtcdStore:
    """One node's handle on the store.  Implements Store with the abilities ``batch`` and ``interrupt``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._transport = Transport(settings)
        self._membership = Membership(settings, self._transport)
        self._requests = self._membership.requests
        self._working = threading.RLock()
        self._writes = 0
        # What was sent and never answered; the same call again sends the same stamp or marker.
        self._unsure_creates: dict[str, bytes] = {}
        self._unsure_add: tuple[str, int, bytes] | None = None
        try:
            self._membership.join(monotonic() + settings.connect_timeout_seconds)
        except StoreUnavailableError as error:
            self._transport.close()
            raise StoreUnavailableError(
                f"cannot reach etcd at {settings.where} within {settings.connect_timeout_seconds:g} s ({error}). Make "
                "sure that it runs and that this machine reaches it there (--rdzv-endpoint), with the right protocol "
                "(TLS or not)"
            ) from None
        except BaseException:
            self._transport.close()
            raise
        self._watcher = Watcher(self._transport)

    # --- the contract -------------------------------------------------------------------------------------------------

    def create(self, key: str, value: bytes) -> bool:
        """Write ``key`` once; returns whether this handle wrote it."""
        requests, name, lease = self._requests, self._key(key), self._membership.lease
        with self._working:
            stamped = self._unsure_creates.pop(key, b"")
            if not stamped or stamped[1 + _STAMP_BYTES :] != value:
                stamped = _CREATED + os.urandom(_STAMP_BYTES) + _checked(key, value)
            try:
                answer = self._membership.run(
                    [requests.is_absent(name)],
                    [requests.put(name, stamped, lease)],
                    [requests.get(name)],
                    self._deadline(),
                )
            except StoreUnavailableError:
                self._unsure_creates[key] = stamped
                raise
        if answer.succeeded:
            return True
        (found,) = answer.responses[1].response_range.kvs
        return bool(found.value == stamped)

    def put(self, key: str, value: bytes) -> None:
        """Write ``key``; the last write wins."""
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write all ``items``, in as few requests as etcd's limits allow; each request is atomic."""
        lease = self._membership.lease
        # A key may stand once in a request; the last write would win anyway.
        for chunk in _in_chunks({key: _checked(key, value) for key, value in items}):
            puts = [self._requests.put(self._key(key), _PUT + value, lease) for key, value in chunk]
            self._membership.run([], puts, [], self._deadline())

    def add(self, key: str, amount: int) -> int:
        """Add to the counter ``key``; returns the new count.  The same call again after an error adds once in all."""
        if not -(1 << 63) <= amount < 1 << 63:
            raise UsageError(f"the amount {amount} to add to {key!r} does not fit into 64 bits")
        if amount == 0:
            (found,) = self._read([key])
            return 0 if found is None else _count(key, found)
        with self._working:
            unsure, self._unsure_add = self._unsure_add, None
            if unsure is not None and unsure[:2] == (key, amount):
                marker = unsure[2]
            else:
                self._writes += 1
                marker = b"%d" % self._writes
            try:
                return self._add_once(key, amount, marker)
            except StoreUnavailableError:
                self._unsure_add = (key, amount, marker)
                raise

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of ``keys``; one round trip for every 120."""
        return [
            None if found is None else _value(key, found) for key, found in zip(keys, self._read(keys), strict=True)
        ]

    def wait(self, key: str, timeout: float) -> bytes | None:
        """Block until ``key`` exists; ``None`` after ``timeout`` seconds or an :meth:`interrupt`."""
        name = self._key(key)

        def look() -> tuple[Any, int]:
            answer = self._membership.run([], [self._requests.get(name)], [], self._deadline())
            kvs = answer.responses[0].response_range.kvs
            return (kvs[0] if kvs else None), answer.header.revision

        found = self._watcher.wait(look, self._requests.watch(name), monotonic() + timeout)
        return None if found is None else _value(key, found)

    def interrupt(self) -> None:
        """Make a wait that is under way return ``None`` soon; without one, the next wait returns at once."""
        self._watcher.interrupt()

    def delete(self, prefix: str) -> None:
        """Remove every key of this job that starts with ``prefix``."""
        self._membership.run([], [self._requests.delete_prefix(self._key(prefix))], [], self._deadline())

    def close(self) -> None:
        """Leave the job; its last member removes what it kept in etcd (unless ``keep`` was set)."""
        if self._transport.is_closed:
            return
        self._watcher.interrupt()
        self._membership.leave()
        self._transport.close()
        self._membership.join_thread()

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return monotonic() + self._settings.operation_timeout_seconds

    def _key(self, key: str) -> bytes:
        return self._membership.keys + key.encode()

    def _read(self, keys: Sequence[str]) -> list[Any]:
        """Return etcd's record of each key, ``None`` where absent."""
        result: list[Any] = []
        for start in range(0, len(keys), _OPERATIONS_AT_ONCE):
            gets = [self._requests.get(self._key(key)) for key in keys[start : start + _OPERATIONS_AT_ONCE]]
            answer = self._membership.run([], gets, [], self._deadline())
            for response in answer.responses:
                kvs = response.response_range.kvs
                result.append(kvs[0] if kvs else None)
        return result

    # --- counting -----------------------------------------------------------------------------------------------------

    def _add_once(self, key: str, amount: int, marker: bytes) -> int:
        """Add, unless ``marker`` tells that this has been done."""
        requests, membership, name = self._requests, self._membership, self._key(key)
        deadline = self._deadline()
        while True:
            compare = [requests.is_not(membership.member, marker)]
            if amount == 1:
                begin = requests.put(name, _counter(0), membership.lease)
                write = requests.either([requests.is_absent(name)], [begin], [requests.touch(name, membership.lease)])
            else:
                (found,) = self._read([key])
                offset = 0 if found is None else _offset(key, found)
                compare.append(requests.is_at(name, 0 if found is None else found.mod_revision))
                # Writing it adds one to the version; the rest goes into the offset.
                write = requests.put(name, _counter(offset + amount - 1), membership.lease)
            mark = requests.put(membership.member, marker, membership.member_lease)
            mine = requests.get(membership.member)
            answer = membership.run(compare, [write, mark, requests.get(name)], [mine], deadline)
            if answer.succeeded:
                return _count(key, answer.responses[2].response_range.kvs[0])
            kvs = answer.responses[1].response_range.kvs
            if not kvs:
                membership.renew(deadline)
            elif kvs[0].value == marker:
                return self._count_at(key, amount, kvs[0].mod_revision, deadline)
            elif monotonic() >= deadline:
                raise StoreUnavailableError(f"the counter {key!r} changes faster than this node can add to it")
            else:
                threading.Event().wait(random.uniform(0.0, 0.02))

    def _count_at(self, key: str, amount: int, revision: int, deadline: float) -> int:
        """Return what the counter was when an attempt was applied whose answer was lost."""
        try:
            answer = self._membership.run([], [self._requests.get(self._key(key), revision)], [], deadline)
        except RefusedError:
            # etcd has forgotten the past since (compaction).  A number that nobody else has matters more than one
            # that follows the last: count again.
            return self.add(key, amount)
        kvs = answer.responses[0].response_range.kvs
        if not kvs:
            raise StoreLostError(f"the counter {key!r} was removed while this node added to it")
        return _count(key, kvs[0])


def _in_chunks(items: dict[str, bytes]) -> Iterator[list[tuple[str, bytes]]]:
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for key, value in items.items():
        more = len(key) + len(value) + 100
        if chunk and (len(chunk) >= _OPERATIONS_AT_ONCE or size + more > _BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, value))
        size += more
    if chunk:
        yield chunk


def _checked(key: str, value: bytes) -> bytes:
    if len(value) > _LARGEST_VALUE:
        raise UsageError(f"the value of {key!r} has {len(value)} bytes; the store takes {_LARGEST_VALUE}")
    return value


# --- values -----------------------------------------------------------------------------------------------------------


def _counter(offset: int) -> bytes:
    return _COUNTER + b"%d" % offset


def _value(key: str, found: Any) -> bytes:
    """Return what was stored in etcd's record ``found``.  Raises StoreCorruptError for what is not ours."""
    value: bytes = found.value
    kind = value[:1]
    if kind == _PUT:
        return value[1:]
    if kind == _CREATED and len(value) > _STAMP_BYTES:
        return value[1 + _STAMP_BYTES :]
    if kind == _COUNTER:
        return b"%d" % _count(key, found)
    raise StoreCorruptError(key, "it was not written by quorate")


def _count(key: str, found: Any) -> int:
    return int(found.version) + _offset(key, found)


def _offset(key: str, found: Any) -> int:
    value: bytes = found.value
    digits = value[1:].removeprefix(b"-")
    if value[:1] != _COUNTER or not digits.isdigit():
        raise StoreCorruptError(key, "it is no counter")
    return int(value[1:])
