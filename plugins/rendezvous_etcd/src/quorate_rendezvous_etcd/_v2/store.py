"""EtcdV2Store: the core's store contract on etcd's API v2.

Every write carries a stamp.  Whether a write without an answer was applied is seen from what is stored.

What does not live here: requests (:mod:`.client`), counters (:mod:`.counter`), waiting (:mod:`.watch`) and membership
in the job (:mod:`.member`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreCorruptError, StoreLostError, StoreUnavailableError, UsageError
from quorate.rendezvous import LastWordWriter

from .._limits import check_amount, check_value
from .._settings import Settings
from .._tls import check_certificate
from .answers import EXISTS, NOT_DIRECTORY, NOT_FILE, NOT_FOUND, Node, RefusedError, expecting, unexpected
from .client import Client, InterruptedCallError, Route
from .counter import count_at, is_counter, pack_addition, total
from .format import Value, key_path, new_stamp, pack, split_prefix, unpack
from .lanes import Lanes
from .last_word import write_last_words
from .member import Membership
from .watch import Watcher

_T = TypeVar("_T")
# From this many keys on, one listing of their directory costs less than a read for each.
_MANY_KEYS = 4


def open_store(settings: Settings, on_waiting: Callable[[str], None]) -> EtcdV2Store:
    """Connect to etcd and become a member of the job.

    Calls ``on_waiting`` with a sentence if this node has to wait for nodes that may come back.

    Raises:
        StoreUnavailableError: etcd did not answer within ``connect_timeout``.
        UsageError: python-etcd is missing, credentials or certificates are wrong, or etcd does not serve API v2.
        StoreCorruptError: something else is stored where the job would be.
    """
    route = Route(settings)
    membership = Membership(settings, route, on_waiting)
    try:
        membership.join(monotonic() + settings.connect_timeout_seconds)
    except (StoreUnavailableError, UsageError) as error:
        membership.leave()
        # No member has answered: that may be due to this node's own certificate, whose file no other side can name.
        problem = check_certificate(settings) if route.cluster_id is None else ""
        if not problem:
            raise
        kind = UsageError if isinstance(error, UsageError) else StoreUnavailableError
        raise kind(f"{error}; {problem}") from None
    except BaseException:
        membership.leave()
        raise
    return EtcdV2Store(settings, route, membership)


@final
class EtcdV2Store:
    """One node's handle on the store, see :func:`open_store`.  Has the abilities ``interrupt`` and ``last word``."""

    def __init__(self, settings: Settings, route: Route, membership: Membership) -> None:
        self._settings, self._membership = settings, membership
        self._client, self._wait_client = Client(route), Client(route)
        self._lanes = Lanes(route, self._client)
        self._watcher = Watcher(self._wait_client, membership, settings.operation_timeout_seconds)
        membership.on_lost = self._wait_client.end_poll
        # The stamps of writes without an answer; the same call again writes the same stamp.
        self._unsure_creates: dict[str, Value] = {}
        self._unsure_adds: dict[tuple[str, int], str] = {}
        self._closing = threading.Lock()
        self._is_closed = False
        self._process = os.getpid()

    # --- the contract -------------------------------------------------------------------------------------------------

    def create(self, key: str, value: bytes) -> bool:
        """Write ``key`` once; return whether this call wrote it.

        After StoreUnavailableError the same call again writes the same stamp, so its result counts for both.
        """
        mine = self._unsure_creates.pop(key, None)
        if mine is None or mine.data != value:
            mine = Value(check_value(key, value), new_stamp())
        path, text = self._path(key), pack(mine)

        def write(deadline: float) -> bool:
            with expecting(EXISTS, NOT_FILE):
                self._client.put(path, deadline, value=text, prevExist=False)
                return True
            # This client, or a proxy on the way, may have sent it twice.
            found = self._read(path, deadline)
            return found is not None and found.stamp == mine.stamp

        try:
            return self._run(write)
        except StoreLostError:
            raise
        except StoreUnavailableError:
            self._unsure_creates[key] = mine
            raise

    def put(self, key: str, value: bytes) -> None:
        """Write ``key``; the last write wins."""
        path, text = self._path(key), pack(Value(check_value(key, value), new_stamp()))
        self._run(lambda deadline: self._lanes.write(path, lambda client, path: client.put(path, deadline, value=text)))

    def add(self, key: str, amount: int) -> int:
        """Add to the counter ``key``; return the new count.  The same call again after an error adds once in all."""
        path = self._path(key)
        if not check_amount(key, amount):
            return self._run(lambda deadline: self._count(path, deadline))
        stamp = self._unsure_adds.pop((key, amount), "") or new_stamp()
        try:
            return self._run(lambda deadline: self._add(path, amount, stamp, deadline))
        except StoreLostError:
            raise
        except StoreUnavailableError:
            self._unsure_adds[key, amount] = stamp
            raise

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of ``keys``.

        API v2 cannot be asked for several keys.  A few are read one by one, or side by side where that takes long.  Of
        many in one directory, the directory is listed.
        """
        if not keys:
            return []
        return self._run(lambda deadline: self._get(keys, deadline))

    def wait(self, key: str, timeout: float) -> bytes | None:
        """Block until ``key`` exists; ``None`` after ``timeout`` seconds or an :meth:`interrupt`."""
        deadline, path = monotonic() + timeout, self._path(key)

        def wait() -> bytes | None:
            node = self._watcher.wait(path, deadline)
            if node is None and self._is_closed:
                self._check_usable()
            return None if node is None else _value_of(node, path).data

        try:
            return self._guard(wait)
        except QuorateError:
            raise
        except Exception as error:
            # The thread that waits must not end without a word.
            self._membership.set_lost(f"waiting for {key!r} in etcd has failed ({type(error).__name__}: {error})")
            raise StoreLostError(self._membership.lost) from error

    def interrupt(self) -> None:
        """Make a wait that is under way return ``None`` soon; without one, the next wait returns at once."""
        self._watcher.interrupt()

    def last_word_writer(self) -> LastWordWriter:
        """Return what writes for this node if its agent is killed."""
        return partial(write_last_words, self._settings, self._membership.token, self._membership.entry)

    def delete(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``."""
        directory, starts = split_prefix(prefix)
        path = self._membership.keys + (f"/{directory}" if directory else "")

        def remove(deadline: float) -> None:
            if not starts[0]:
                self._client.delete(path, deadline, recursive=True)
                return
            for child in self._children(path, deadline):
                if child.key.rpartition("/")[2].startswith(starts):
                    self._client.delete(child.key, deadline, recursive=True)

        self._run(remove)

    def close(self) -> None:
        """Leave the job; its last member removes its keys from etcd (unless ``keep`` was set)."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._client.close()
        self._lanes.close()
        self._watcher.close()
        # A forked child has a copy of this object, but is not the member.
        if os.getpid() == self._process:
            self._membership.leave()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        return f"{self._membership.keys}/{key_path(key)}"

    def _run(self, operation: Callable[[float], _T]) -> _T:
        """Carry out an operation within the operation timeout."""

        def run() -> _T:
            self._membership.check()
            deadline = monotonic() + self._settings.operation_timeout_seconds
            return self._membership.verified(self._lanes, lambda: operation(deadline))

        try:
            return self._guard(run)
        except InterruptedCallError:
            self._check_usable()
            raise StoreUnavailableError("the operation was interrupted") from None

    def _guard(self, operation: Callable[[], _T]) -> _T:
        self._check_usable()
        try:
            return operation()
        except RefusedError as refused:
            raise unexpected(refused, self._membership.keys) from refused

    def _check_usable(self) -> None:
        if self._is_closed:
            raise StoreLostError("this handle on the etcd store is closed")
        if os.getpid() != self._process:
            raise StoreLostError(
                f"this handle on the etcd store belongs to process {self._process}; open another one in this process"
            )

    # --- counting -----------------------------------------------------------------------------------------------------

    def _add(self, path: str, amount: int, stamp: str, deadline: float) -> int:
        while True:
            try:
                with expecting(NOT_FOUND):
                    self._client.post(path, deadline, value=pack_addition(amount, stamp))
                    count = count_at(self._client.get(path, deadline).node, stamp)
                    if count is not None:
                        return count
            except RefusedError as refused:
                if refused.code != NOT_DIRECTORY:
                    raise
                raise StoreCorruptError(path, "it is not a counter") from None
            # Another node has removed the counter just now.
            if monotonic() >= deadline:
                raise StoreUnavailableError(f"the counter at {path} is repeatedly created and deleted")

    def _count(self, path: str, deadline: float) -> int:
        node = self._node(path, deadline)
        if node is None:
            return 0
        if not is_counter(node):
            raise StoreCorruptError(path, "it is not a counter")
        return total(node)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _node(self, path: str, deadline: float, client: Client | None = None) -> Node | None:
        """Return the node at ``path`` with its children, ``None`` where it does not exist."""
        with expecting(NOT_FOUND):
            return (client or self._client).get(path, deadline).node
        return None

    def _read(self, path: str, deadline: float, client: Client | None = None) -> Value | None:
        node = self._node(path, deadline, client)
        return None if node is None else _value_of(node, path)

    def _get(self, keys: Sequence[str], deadline: float) -> list[bytes | None]:
        paths = [self._path(key) for key in keys]
        wanted, parents = set(paths), {path.rpartition("/")[0] for path in paths}
        if len(paths) < _MANY_KEYS or len(parents) > len(paths) // 2:
            values = self._lanes.read(paths, lambda client, path: self._read(path, deadline, client))
            found = dict(zip(paths, values, strict=True))
        else:
            found = {}
            for parent in parents:
                for node in self._children(parent, deadline):
                    if node.key in wanted:
                        # A listing shows directories, which counters are, without their children.
                        is_listed = not node.is_directory
                        found[node.key] = _value_of(node, node.key) if is_listed else self._read(node.key, deadline)
        return [None if value is None else value.data for value in map(found.get, paths)]

    def _children(self, directory: str, deadline: float) -> tuple[Node, ...]:
        node = self._node(directory, deadline)
        return () if node is None else node.children


def _value_of(node: Node, path: str) -> Value:
    """Return what ``node`` holds; of a counter, its count."""
    return Value(b"%d" % total(node), "") if is_counter(node) else unpack(node.value, path)
