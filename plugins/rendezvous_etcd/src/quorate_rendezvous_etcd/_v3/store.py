"""EtcdStore: the core's store contract on etcd's API v3.

Every operation is one transaction that has the same effect when it is applied twice.  So an attempt without an answer
can be sent again:

* ``create`` writes the key if it does not exist, with a stamp in the value.  A node that finds its own stamp there has
  written it, with whichever attempt.
* ``add`` by one writes the counter's key again.  The count is the number of writes, which etcd keeps of every key
  (``version``).  Nothing is compared, so nodes that count at once never make each other retry.  The same transaction
  writes a marker into this member's key, by which a second attempt sees that the first was applied.
* ``wait`` reads, watches, and reads again if anything was written before the watch began, so no write is missed.

What does not live here: membership (:mod:`.member`), waiting (:mod:`.watch`), and how values look (:mod:`.format`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, final

from quorate.clock import monotonic, sleep
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError
from quorate.rendezvous import LastWordWriter

from .._limits import check_amount, check_value
from .._settings import Settings
from .._tls import check_certificate
from .answers import RefusedError
from .client import Client
from .format import count_of, data_of, has_data, offset_of, pack_counter, pack_created, pack_put
from .last_word import write_last_words
from .member import Membership
from .watch import Watcher

# By default etcd accepts 128 operations and 1.5 MiB in one request.
_MOST_OPERATIONS = 120
_MOST_BYTES = 1_200_000
_HERE_SECONDS = 1.0


@final
class EtcdStore:
    """One node's handle on the store; made when it has become a member of the job.

    Implements Store with the abilities ``batch``, ``interrupt`` and ``last word``.

    Raises:
        UsageError: settings that cannot be used, or refused credentials.
        StoreUnavailableError: no answer within ``connect_timeout``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        self._membership = Membership(settings, self._client)
        self._requests = self._membership.requests
        self._working = threading.RLock()
        self._writes = 0
        # Operations without an answer; the same call again sends the same stamp or marker.
        self._unsure_creates: dict[str, bytes] = {}
        self._unsure_add: tuple[str, int, bytes] | None = None
        try:
            self._membership.join(monotonic() + settings.connect_timeout_seconds)
        except StoreUnavailableError as error:
            self._client.close()
            problem = check_certificate(settings)
            raise StoreUnavailableError(
                f"cannot reach etcd at {settings.where} within {settings.connect_timeout_seconds:g} s ({error}). Make "
                "sure that it runs and that this machine reaches it there (--rdzv-endpoint), with the right protocol "
                "(TLS or not)" + (f"; {problem}" if problem else "")
            ) from None
        except BaseException:
            self._client.close()
            raise
        self._watcher = Watcher(self._client)
        self._membership.on_lost = self._watcher.look_again

    # --- the contract -------------------------------------------------------------------------------------------------

    def create(self, key: str, value: bytes) -> bool:
        """Write ``key`` once; return whether this handle wrote it."""
        requests, name, lease = self._requests, self._key(key), self._membership.lease
        with self._working:
            stamped = self._unsure_creates.pop(key, b"")
            if not stamped or not has_data(stamped, value):
                stamped = pack_created(check_value(key, value))
            try:
                answer = self._run(
                    [requests.is_absent(name)], [requests.put(name, stamped, lease)], [requests.get(name)]
                )
            except StoreUnavailableError:
                self._unsure_creates[key] = stamped
                raise
        if answer.succeeded:
            return True
        found = _record_in(answer.responses[1])
        return found is not None and bool(found.value == stamped)

    def put(self, key: str, value: bytes) -> None:
        """Write ``key``; the last write wins."""
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write all ``items``, in as few requests as etcd's limits allow; each request is atomic."""
        lease = self._membership.lease
        # A key may stand only once in a request.
        for chunk in _in_chunks({key: check_value(key, value) for key, value in items}):
            self._run([], [self._requests.put(self._key(key), pack_put(value), lease) for key, value in chunk])

    def add(self, key: str, amount: int) -> int:
        """Add to the counter ``key``; return the new count.  The same call again after an error adds once in all."""
        check_amount(key, amount)
        if amount == 0:
            (found,) = self._read([key])
            return 0 if found is None else count_of(key, found)
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
        """Return the values of ``keys``; one request for every 120."""
        return _data_of_all(keys, self._read(keys))

    def get_here(self, keys: Sequence[str]) -> list[bytes | None]:
        """As :meth:`get`, from one member that does not ask the others: it may have missed newer writes."""
        return _data_of_all(keys, self._read_here(keys))

    def count_here(self, key: str) -> int:
        """As ``add(key, 0)``, from one member."""
        (found,) = self._read_here([key])
        return 0 if found is None else count_of(key, found)

    def _read_here(self, keys: Sequence[str]) -> list[Any]:
        gets = [self._requests.get(self._key(key), here=True) for key in keys[:_MOST_OPERATIONS]]
        request = self._requests.transaction([], gets)
        return [_record_in(each) for each in self._client.transact(request, monotonic() + _HERE_SECONDS).responses]

    def wait(self, key: str, timeout: float) -> bytes | None:
        """Block until ``key`` exists; ``None`` after ``timeout`` seconds or an :meth:`interrupt`."""
        name = self._key(key)

        def look() -> tuple[Any, int]:
            answer = self._run([], [self._requests.get(name)])
            return _record_in(answer.responses[0]), answer.header.revision

        try:
            found = self._watcher.wait(look, self._requests.watch(name), monotonic() + timeout)
        except QuorateError:
            raise
        except Exception as error:
            # The thread that waits must not end without a word.
            self._membership.set_lost(f"waiting for {key!r} in etcd has failed ({type(error).__name__}: {error})")
            raise StoreLostError(self._membership.lost) from error
        return None if found is None else data_of(key, found)

    def interrupt(self) -> None:
        """Make a wait that is under way return ``None`` soon; without one, the next wait returns at once."""
        self._watcher.interrupt()

    def last_word_writer(self) -> LastWordWriter:
        """Return what writes for this node if its agent is killed."""
        return partial(write_last_words, self._settings, self._membership.departed())

    def delete(self, prefix: str) -> None:
        """Remove every key of this job that starts with ``prefix``."""
        self._run([], [self._requests.delete_prefix(self._key(prefix))])

    def close(self) -> None:
        """Leave the job; its last member removes its keys from etcd (unless ``keep`` was set)."""
        self._close(self._membership.leave)

    def abandon(self) -> None:
        """Close the connections and leave everything as it is, where etcd ends together with the job."""
        self._close(self._membership.abandon)

    def _close(self, part: Callable[[], None]) -> None:
        if self._client.is_closed:
            return
        self._watcher.interrupt()
        part()
        self._client.close()
        self._membership.join_thread()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return monotonic() + self._settings.operation_timeout_seconds

    def _key(self, key: str) -> bytes:
        return self._membership.keys + key.encode()

    def _run(
        self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any] = (), deadline: float = 0.0
    ) -> Any:
        """Run a transaction within the job, by ``deadline`` or within the operation timeout."""
        return self._membership.run(compare, success, failure, deadline or self._deadline())

    def _read(self, keys: Sequence[str]) -> list[Any]:
        """Return etcd's record of each key, ``None`` where absent."""
        result: list[Any] = []
        for start in range(0, len(keys), _MOST_OPERATIONS):
            gets = [self._requests.get(self._key(key)) for key in keys[start : start + _MOST_OPERATIONS]]
            result += map(_record_in, self._run([], gets).responses)
        return result

    # --- counting -----------------------------------------------------------------------------------------------------

    def _add_once(self, key: str, amount: int, marker: bytes) -> int:
        """Add, unless ``marker`` says that this has been done."""
        requests, membership, name = self._requests, self._membership, self._key(key)
        deadline = self._deadline()
        while True:
            compare = [requests.is_not(membership.member, marker)]
            if amount == 1:
                begin = requests.put(name, pack_counter(0), membership.lease)
                write = requests.either([requests.is_absent(name)], [begin], [requests.touch(name, membership.lease)])
            else:
                (found,) = self._read([key])
                offset = 0 if found is None else offset_of(key, found)
                compare.append(requests.is_at(name, 0 if found is None else found.mod_revision))
                # The write itself adds one to the version; the rest is added to the offset.
                write = requests.put(name, pack_counter(offset + amount - 1), membership.lease)
            mark = requests.put(membership.member, marker, membership.member_lease)
            mine = requests.get(membership.member)
            answer = self._run(compare, [write, mark, requests.get(name)], [mine], deadline)
            if answer.succeeded:
                return self._count_in(key, answer.responses[2])
            own = _record_in(answer.responses[1])
            if own is None:
                membership.renew(deadline)
            elif own.value == marker:
                return self._count_at(key, amount, own.mod_revision, deadline)
            elif monotonic() >= deadline:
                raise StoreUnavailableError(f"the counter {key!r} changes faster than this node can add to it")
            else:
                sleep(random.uniform(0.0, 0.02))

    def _count_at(self, key: str, amount: int, revision: int, deadline: float) -> int:
        """Return the count right after an attempt that was applied without an answer."""
        try:
            answer = self._run([], [self._requests.get(self._key(key), revision)], [], deadline)
        except RefusedError:
            # etcd has compacted that revision.  Count again: a unique number matters more than one without a gap.
            return self.add(key, amount)
        return self._count_in(key, answer.responses[0])

    def _count_in(self, key: str, response: Any) -> int:
        record = _record_in(response)
        if record is None:
            raise StoreLostError(f"the counter {key!r} was removed while this node added to it")
        return count_of(key, record)


def _data_of_all(keys: Sequence[str], records: Sequence[Any]) -> list[bytes | None]:
    return [None if found is None else data_of(key, found) for key, found in zip(keys, records, strict=True)]


def _record_in(response: Any) -> Any:
    """Return the record in the response to a read, ``None`` where the key does not exist."""
    records = response.response_range.kvs
    return records[0] if records else None


def _in_chunks(items: dict[str, bytes]) -> Iterator[list[tuple[str, bytes]]]:
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for key, value in items.items():
        more = len(key) + len(value) + 100
        if chunk and (len(chunk) >= _MOST_OPERATIONS or size + more > _MOST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, value))
        size += more
    if chunk:
        yield chunk
