"""Reads several nodes of API v2, side by side where each answer takes long.

API v2 reads one node in a request.  Over a link with a round trip of 200 ms a heartbeat that follows five reads is a
second late, and each packet that is lost makes it later: a few of them in a row would be a lease.  So where requests
take long, there are up to four more connections.  They share what is to be read, and one that has nothing left asks
again for what another has waited for.

What does not live here: what is read (:mod:`.store`) and the requests (:mod:`.client`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, final

from quorate.clock import monotonic

from .client import Client, Route

__all__ = ["Readers"]

Read = Callable[[Client, str], Any]

_MOST = 4
#: From this time for one read on, more connections are worth their while.
_LONG_SECONDS = 0.1
#: An answer that takes longer is asked for again.  Far above usual round trips, and a fraction of a lease.
_LATE_SECONDS = 0.5
_END_SECONDS = 1.0


@final
class Readers:
    """The connections over which one store reads.  One thread at a time calls :meth:`read`.

    Arguments:
        client: reads one node after the other while that is quick.
    """

    def __init__(self, route: Route, client: Client) -> None:
        self._route, self._client = route, client
        self._lock = threading.Lock()
        self._more: list[_Reader] = []
        self._takes_long = self._is_closed = False

    @property
    def connections(self) -> int:
        """The number of all connections so far."""
        return self._client.connections + sum(reader.client.connections for reader in self._more)

    def read(self, paths: Sequence[str], read: Read) -> list[Any]:
        """Return what ``read(client, path)`` returns for each path.  Raises what it raises."""
        free = self._free(len(paths)) if self._takes_long and len(paths) > 1 else []
        if free:
            return _Task(paths, read).run(free)
        began = monotonic()
        found = [read(self._client, path) for path in paths]
        self._takes_long = monotonic() - began > _LONG_SECONDS * len(paths)
        return found

    def _free(self, count: int) -> list[_Reader]:
        """Return readers that wait for nothing: for each path one, and one more."""
        with self._lock:
            while len(self._more) < _MOST and not self._is_closed:
                self._more.append(_Reader(Client(self._route)))
            return [reader for reader in self._more if not reader.is_busy][: count + 1]

    def close(self) -> None:
        """Interrupt all reads and close all connections but ``client``'s; from any thread."""
        with self._lock:
            self._is_closed = True
        for reader in self._more:
            reader.client.close()
        for reader in self._more:
            reader.join()


@final
class _Reader:
    """One more connection, and the thread that reads over it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(self, work: Callable[[Client], None]) -> None:
        self._thread = threading.Thread(target=work, args=(self.client,), name="quorate-etcd-v2-reader", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until an interrupted read has ended, but not for a name that is being resolved."""
        if self._thread is not None:
            self._thread.join(_END_SECONDS)


@final
class _Task:
    """What one call of :meth:`Readers.read` has to read."""

    def __init__(self, paths: Sequence[str], read: Read) -> None:
        self._paths, self._read = paths, read
        self._changed = threading.Condition()
        self._unasked = deque(dict.fromkeys(paths))
        self._asked_at: dict[str, float] = {}
        self._found: dict[str, Any] = {}
        self._error: BaseException | None = None

    def run(self, readers: Sequence[_Reader]) -> list[Any]:
        """Return what is found, as soon as all is, while a reader may still wait."""
        for reader in readers:
            reader.begin(self._work)
        with self._changed:
            self._changed.wait_for(lambda: self._is_over)
        if self._error is not None:
            raise self._error
        return [self._found[path] for path in self._paths]

    @property
    def _is_over(self) -> bool:
        return self._error is not None or len(self._found) == len(self._asked_at) + len(self._unasked)

    def _work(self, client: Client) -> None:
        while (path := self._next()) is not None:
            try:
                found, error = self._read(client, path), None
            except BaseException as problem:  # raised where the readers are waited for
                found, error = None, problem
            with self._changed:
                if error is None:
                    self._found.setdefault(path, found)
                elif path not in self._found:
                    self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Return what to ask for next, which may be late; ``None`` when all has been found."""
        with self._changed:
            while not self._is_over:
                now = monotonic()
                if self._unasked:
                    path = self._unasked.popleft()
                    self._asked_at[path] = now
                    return path
                awaited = [(at, path) for path, at in self._asked_at.items() if path not in self._found]
                at, path = min(awaited)
                if now - at >= _LATE_SECONDS:
                    self._asked_at[path] = now
                    return path
                self._changed.wait(at + _LATE_SECONDS - now)
            return None
