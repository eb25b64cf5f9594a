"""The store's operations on etcd's API v2.

Nothing polls: a wait is a read followed by etcd's long poll from the index of that read, so that no write in between
is missed.  Every write carries a stamp; whether a write without an answer was applied is then seen from what is
stored.  What does not live here: requests (:mod:`._v2_client`), what counters are made of (:mod:`._v2_counter`), and
membership in the job (:mod:`._v2_member`).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, final

from quorate.clock import monotonic
from quorate.errors import StoreCorruptError, StoreLostError, StoreUnavailableError

from ._settings import Settings
from ._v2_client import (
    EXISTS,
    NOT_DIRECTORY,
    NOT_FILE,
    NOT_FOUND,
    Caller,
    InterruptedCallError,
    RefusedError,
    Route,
    unexpected,
)
from ._v2_counter import count_at, is_counter, pack_addition, total
from ._v2_format import Value, key_path, new_stamp, pack, split_prefix, unpack
from ._v2_member import Membership

__all__ = ["EtcdV2Store", "open_v2_store"]

_T = TypeVar("_T")
# From this many keys on, one listing of their common directory is cheaper than a read for each.
_MANY_KEYS = 4
# A long poll is begun anew this often: a member of the cluster that is frozen looks just like one with nothing to tell.
_RENEW_SECONDS = 30.0


def open_v2_store(settings: Settings) -> EtcdV2Store:
    """Reach etcd and join the job.

    Raises:
        StoreUnavailableError: etcd did not answer within ``connect_timeout``.
        UsageError: python-etcd is missing, credentials or certificates are wrong, or etcd does not serve API v2.
        StoreCorruptError: something else is stored where the job would be.
    """
    route = Route(settings)
    membership = Membership(settings, route)
    try:
        membership.join(monotonic() + settings.connect_timeout_seconds)
    except BaseException:
        membership.leave()
        raise
    return EtcdV2Store(settings, route, membership)


@final
class EtcdV2Store:
    """Implements :class:`quorate.rendezvous.Store` with the ability ``interrupt``.  Made by :func:`open_v2_store`."""

    def __init__(self, settings: Settings, route: Route, membership: Membership) -> None:
        self._settings, self._membership = settings, membership
        self._work = Caller(route)
        self._waiter = Caller(route)
        membership.on_lost = self._waiter.break_off
        self._unsure: dict[str, Value] = {}
        self._unsure_adds: dict[tuple[str, int], str] = {}
        self._state = threading.Lock()
        self._waiting = self._interrupted = self._closed = False
        self._process = os.getpid()

    # --- the contract ---------------------------------------------------------------------------------------------

    def create(self, key: str, value: bytes) -> bool:
        """Write ``key`` once; returns whether this call wrote it.

        After StoreUnavailableError the same call again tells the truth about both: it writes the same stamp.
        """
        mine = self._unsure.pop(key, None)
        if mine is None or mine.data != value:
            mine = Value(value, new_stamp())
        path, text = self._path(key), pack(mine)

        def write(deadline: float) -> bool:
            try:
                self._work.put(path, deadline, value=text, prevExist=False)
            except RefusedError as refused:
                if refused.code not in (EXISTS, NOT_FILE):
                    raise
                # What is there may be ours: sent twice, by this client or by a proxy on the way.
                found = self._read(path, deadline)
                return found is not None and found.stamp == mine.stamp
            return True

        try:
            return self._run(write)
        except StoreLostError:
            raise
        except StoreUnavailableError:
            self._unsure[key] = mine
            raise

    def put(self, key: str, value: bytes) -> None:
        """Write ``key``; the last write wins."""
        path, text = self._path(key), pack(Value(value, new_stamp()))
        self._run(lambda deadline: self._work.put(path, deadline, value=text))

    def add(self, key: str, amount: int) -> int:
        """Add to the counter ``key``; returns the new count.  The same call again after an error adds once in all."""
        path = self._path(key)
        if not amount:
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

        API v2 cannot be asked for several keys.  A few are read one by one; of many, the one directory that all are
        in is listed, whatever else is in it.
        """
        if not keys:
            return []
        return self._run(lambda deadline: self._get(keys, deadline))

    def wait(self, key: str, timeout: float) -> bytes | None:
        """Block until ``key`` exists; ``None`` after ``timeout`` seconds or an :meth:`interrupt`."""
        deadline = monotonic() + timeout
        with self._state:
            if self._interrupted:
                self._interrupted = False
                return None
            self._waiting = True
        try:
            return self._guard(lambda: self._wait(self._path(key), deadline))
        except InterruptedCallError:
            if self._closed:
                self._refuse_if_over()
            return None
        finally:
            with self._state:
                self._waiting = self._interrupted = False
                if not self._closed:
                    self._waiter.resume()

    def interrupt(self) -> None:
        """Make a wait that is under way return ``None`` soon; without one, the next wait returns at once."""
        with self._state:
            self._interrupted = True
            if self._waiting:
                self._waiter.interrupt()

    def delete(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``."""
        directory, starts = split_prefix(prefix)
        path = self._membership.keys + (f"/{directory}" if directory else "")

        def remove(deadline: float) -> None:
            if not starts[0]:
                self._work.delete(path, deadline, recursive=True)
                return
            for name in self._names(path, deadline):
                if name.startswith(starts):
                    self._work.delete(f"{path}/{name}", deadline, recursive=True)

        self._run(remove)

    def close(self) -> None:
        """Leave the job; its last member removes what is left of it in etcd."""
        with self._state:
            if self._closed:
                return
            self._closed = True
        self._work.close()
        self._waiter.close()
        # A forked child has a copy of this object, but is not the member.
        if os.getpid() == self._process:
            self._membership.leave()

    # --- working --------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        return f"{self._membership.keys}/{key_path(key)}"

    def _run(self, operation: Callable[[float], _T]) -> _T:
        """Carry out an operation within the operation time-out."""

        def run() -> _T:
            self._membership.check()
            deadline = monotonic() + self._settings.operation_timeout_seconds
            return self._verified(self._work, lambda: operation(deadline))

        try:
            return self._guard(run)
        except InterruptedCallError:
            self._refuse_if_over()
            raise StoreUnavailableError("the operation was broken off") from None

    def _verified(self, caller: Caller, step: Callable[[], _T]) -> _T:
        """Take a step; where that took a new connection, etcd was away: make sure that it still has the job."""
        connections = caller.connections
        result = step()
        if caller.connections != connections:
            self._membership.verify()
        return result

    def _guard(self, operation: Callable[[], _T]) -> _T:
        self._refuse_if_over()
        try:
            return operation()
        except RefusedError as refused:
            raise unexpected(refused, self._membership.keys) from refused

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise StoreLostError("this handle on the etcd store is closed")
        if os.getpid() != self._process:
            raise StoreLostError(
                f"this handle on the etcd store belongs to process {self._process}; open another one in this process"
            )

    # --- counting -------------------------------------------------------------------------------------------------

    def _add(self, path: str, amount: int, stamp: str, deadline: float) -> int:
        while True:
            try:
                self._work.post(path, deadline, value=pack_addition(amount, stamp))
                count = count_at(self._work.get(path, deadline).node, stamp)
            except RefusedError as refused:
                if refused.code == NOT_DIRECTORY:
                    raise StoreCorruptError(path, "it is no counter") from None
                if refused.code != NOT_FOUND:
                    raise
                count = None
            if count is not None:
                return count
            # Somebody removed the counter just now.
            if monotonic() >= deadline:
                raise StoreUnavailableError(f"the counter at {path} comes and goes")

    def _count(self, path: str, deadline: float) -> int:
        node = self._node(path, deadline)
        if node is None:
            return 0
        if not is_counter(node):
            raise StoreCorruptError(path, "it is no counter")
        return total(node)

    # --- reading --------------------------------------------------------------------------------------------------

    def _node(self, path: str, deadline: float) -> Mapping[str, Any] | None:
        """Return what is at ``path``, with what is in it, ``None`` where nothing is."""
        try:
            return self._work.get(path, deadline).node
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return None

    def _read(self, path: str, deadline: float) -> Value | None:
        """Return what ``path`` holds."""
        node = self._node(path, deadline)
        return None if node is None else _value(node, path)

    def _get(self, keys: Sequence[str], deadline: float) -> list[bytes | None]:
        paths = [self._path(key) for key in keys]
        wanted, parents = set(paths), {path.rpartition("/")[0] for path in paths}
        if len(paths) < _MANY_KEYS or len(parents) > len(paths) // 2:
            found = {path: self._read(path, deadline) for path in wanted}
        else:
            found = {}
            for parent in parents:
                for path, node in self._nodes(parent, deadline):
                    if path not in wanted:
                        continue
                    # A listing shows directories, which counters are, without what is in them.
                    found[path] = self._read(path, deadline) if node.get("dir") else _value(node, path)
        return [None if value is None else value.data for value in (found.get(path) for path in paths)]

    def _names(self, directory: str, deadline: float) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self._nodes(directory, deadline)]

    def _nodes(self, directory: str, deadline: float) -> list[tuple[str, Mapping[str, Any]]]:
        found = self._node(directory, deadline) or {}
        return [(str(node["key"]), node) for node in found.get("nodes") or ()]

    # --- waiting --------------------------------------------------------------------------------------------------

    def _wait(self, path: str, deadline: float) -> bytes | None:
        while True:
            self._membership.check()
            node, index = self._verified(self._waiter, lambda: self._look(path, deadline))
            left = deadline - monotonic()
            if node is None and left > 0:
                limit = min(left, _RENEW_SECONDS * random.uniform(0.8, 1.0))
                # What is below it counts, too: a counter is a directory.
                poll = partial(self._waiter.poll, path, index + 1, limit, recursive=True)
                change = self._verified(self._waiter, poll)
                # A change without a value is the end of something; what is there now will be seen.
                is_value = change is not None and "value" in change.node and change.node["key"] == path
                node = change.node if change is not None and is_value else None
            if node is not None:
                return _value(node, path).data
            if left <= 0:
                return None

    def _look(self, path: str, deadline: float) -> tuple[Mapping[str, Any] | None, int]:
        """Return what is at ``path``; else the index of the store, from which on nothing is there."""
        limit = min(self._settings.operation_timeout_seconds, max(0.0, deadline - monotonic()) + 1.0)
        try:
            return self._waiter.get(path, monotonic() + limit).node, 0
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return None, refused.index


def _value(node: Mapping[str, Any], path: str) -> Value:
    """Return what etcd's ``node`` holds; of a counter, its count."""
    return Value(b"%d" % total(node), "") if is_counter(node) else unpack(node.get("value"), path)
