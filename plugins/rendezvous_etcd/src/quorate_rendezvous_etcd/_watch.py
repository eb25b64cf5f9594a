"""Waiting for a key: read it, then watch from that reading's revision on, through whatever happens to the watch.

A watch ends when its member dies, loses its leader, or has forgotten the revision asked for; it then begins anew with a
reading.  What does not live here: the requests of everything else (:mod:`._store`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from quorate.clock import monotonic
from quorate.lazy_typing import Any, final

from ._transport import Connection, Transport

__all__ = ["Watcher"]

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


@final
class Watcher:
    """The one wait that a store has under way, and how to end it from another thread."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._state = threading.Lock()
        self._connection: Connection | None = None
        self._woken = threading.Event()

    def interrupt(self) -> None:
        """Make the wait that is under way, or else the next one, end.  Never blocks."""
        with self._state:
            self._woken.set()
            connection = self._connection
        if connection is not None:
            connection.channel.close()

    def wait(self, look: Callable[[], tuple[Any, int]], request_from: Callable[[int], Any], deadline: float) -> Any:
        """Return etcd's record of a key once it exists; ``None`` at ``deadline`` or when interrupted.

        ``look`` reads the key: it returns the record, or ``None``, and the revision at which it read.
        ``request_from`` makes the request that watches it from a revision on.

        Raises:
            StoreUnavailableError: etcd did not answer for the operation time-out.
        """
        try:
            pause = _FIRST_PAUSE_SECONDS
            while not self._woken.is_set():
                found, revision = look()
                if found is not None or monotonic() >= deadline:
                    return found
                began = monotonic()
                found = self._watch(request_from(revision + 1), deadline)
                if found is not None or monotonic() >= deadline:
                    return found
                # A watch that has lasted was a good one.  Jittered: a dying member ends the watches of many nodes.
                pause = _FIRST_PAUSE_SECONDS if monotonic() - began > 1.0 else min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._woken.wait(min(pause * random.uniform(0.5, 1.0), max(0.0, deadline - monotonic())))
            return None
        finally:
            self._woken.clear()

    def _watch(self, request: Any, deadline: float) -> Any:
        """Watch once; returns the record that was written, or ``None`` if the watch ended, for whatever reason.

        Whether the reason is one that stays is for the next look to find out.
        """
        transport = self._transport
        connection, stream = transport.begin_watch(), None
        with self._state:
            self._connection = connection
            is_late = self._woken.is_set()
        try:
            if is_late:
                return None
            stream = transport.watch(connection, request, max(0.001, deadline - monotonic()))
            for answer in stream:
                if answer.events:
                    return answer.events[-1].kv
                if answer.canceled:
                    return None
            return None
        except transport.failures as error:
            if not self._woken.is_set() and monotonic() < deadline:
                transport.note_failure(connection, error)
            return None
        finally:
            with self._state:
                self._connection = None
            transport.end_watch(connection, stream)
