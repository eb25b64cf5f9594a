"""More connections to API v2 where each answer takes long: what is read is shared out, what is late is asked again.

API v2 reads one node in a request.  Over a link with a round trip of 200 ms a heartbeat that follows five reads is a
second late, and each packet that is lost makes it later: a few of them in a row would be a lease.  So where requests
take long, there are up to four more connections, the lanes.  They share what is to be read, and one that has nothing
left asks again for what another has waited for.  What is written is sent again over a second lane where the first one
stands still.

What does not live here: what is read and written (:mod:`.store`) and the requests (:mod:`.client`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, final

from quorate.clock import monotonic

from .client import Client, Route

Request = Callable[[Client, str], Any]

_MOST = 4
#: From this time for one request on, more connections are worth their while.
_LONG_SECONDS = 0.1
#: An answer that takes longer is asked for again.  Far above usual round trips, and a fraction of a lease.
_LATE_SECONDS = 0.5
_END_SECONDS = 1.0


@final
class Lanes:
    """The connections over which one store reads and writes, for one thread at a time.

    Arguments:
        client: sends one request after the other while that is quick.
    """

    def __init__(self, route: Route, client: Client) -> None:
        self._route, self._client = route, client
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._takes_long = self._is_closed = False

    @property
    def connections(self) -> int:
        """The number of connections that took the place of one that broke, and the first one of ``client``."""
        return self._client.connections + sum(lane.connections for lane in self._lanes)

    def read(self, paths: Sequence[str], read: Request) -> list[Any]:
        """Return what ``read(client, path)`` returns for each path.  Raises what it raises."""
        lanes = self._free()[: len(paths) + 1] if self._takes_long and len(paths) > 1 else []
        began = monotonic()
        if lanes:
            found = _Task(paths, read).run(lanes)
            one = monotonic() - began
        else:
            found = [read(self._client, path) for path in paths]
            one = (monotonic() - began) / max(1, len(paths))
        self._takes_long = one > _LONG_SECONDS
        return found

    def write(self, path: str, write: Request) -> None:
        """Call ``write(client, path)``, maybe twice; nothing of it is sent after this call.  Raises what it raises."""
        lanes = [lane for lane in self._free() if lane.is_connected][:2] if self._takes_long else []
        if len(lanes) < 2:
            write(self._client, path)
            return
        try:
            _Task([path], write).run(lanes)
        finally:
            for lane in lanes:
                lane.discard()

    def _free(self) -> list[_Lane]:
        """Return the lanes that wait for nothing."""
        with self._lock:
            while len(self._lanes) < _MOST and not self._is_closed:
                self._lanes.append(_Lane(Client(self._route)))
            return [lane for lane in self._lanes if not lane.is_busy]

    def close(self) -> None:
        """Interrupt all requests and close all connections but ``client``'s; from any thread."""
        with self._lock:
            self._is_closed = True
        for lane in self._lanes:
            lane.client.close()
        for lane in self._lanes:
            lane.join()


@final
class _Lane:
    """One more connection, and the thread that uses it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._thread: threading.Thread | None = None
        self._discarded = 0

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_connected(self) -> bool:
        return self.client.connections > self._discarded

    @property
    def connections(self) -> int:
        """The number of connections that took the place of one that broke."""
        return max(0, self.client.connections - self._discarded - 1)

    def begin(self, work: Callable[[Client], None]) -> None:
        self.client.resume()
        self._thread = threading.Thread(target=work, args=(self.client,), name="quorate-etcd-v2-lane", daemon=True)
        self._thread.start()

    def discard(self) -> None:
        """Take back a request that is under way: what the kernel has not sent is not sent any more."""
        if self.is_busy:
            self._discarded = self.client.connections
            self.client.interrupt(discard=True)

    def join(self) -> None:
        """Wait until an interrupted request has ended, but not for a name that is being resolved."""
        if self._thread is not None:
            self._thread.join(_END_SECONDS)


@final
class _Task:
    """What one call has to read or write."""

    def __init__(self, paths: Sequence[str], request: Request) -> None:
        self._paths, self._request = paths, request
        self._changed = threading.Condition()
        self._unasked = deque(dict.fromkeys(paths))
        self._asked_at: dict[str, float] = {}
        self._found: dict[str, Any] = {}
        self._error: BaseException | None = None

    def run(self, lanes: Sequence[_Lane]) -> list[Any]:
        """Return the results as soon as all are there, while a lane may still wait."""
        for lane in lanes:
            lane.begin(self._work)
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
                found, error = self._request(client, path), None
            except BaseException as problem:  # raised where the lanes are waited for
                found, error = None, problem
            with self._changed:
                if error is None:
                    self._found.setdefault(path, found)
                elif path not in self._found:
                    self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Return what to ask for next, which may be late; ``None`` when all is there."""
        with self._changed:
            while not self._is_over:
                now = monotonic()
                if self._unasked:
                    path = self._unasked.popleft()
                    self._asked_at[path] = now
                    return path
                at, path = min((at, path) for path, at in self._asked_at.items() if path not in self._found)
                if now - at >= _LATE_SECONDS:
                    self._asked_at[path] = now
                    return path
                self._changed.wait(at + _LATE_SECONDS - now)
            return None
