"""Waiting for a key over API v3: read it, then watch it, and read it again if anything was written in between.

A watch could also begin at the revision of the read.  But etcd puts a watch that begins in the past, even by one write
of another node, on a list that it serves ten times a second.  A write then arrives after 50 ms on average, instead of
one.

A watch ends when its member dies or loses its leader.  A new one then begins, with a read.

What does not live here: the store's other operations (:mod:`.store`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, final

from quorate.clock import monotonic

from .client import Client, Connection
from .http2 import CallError

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


@final
class Watcher:
    """The store's one wait, which another thread can interrupt."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._state = threading.Lock()
        self._connection: Connection | None = None
        self._woken = threading.Event()

    def interrupt(self) -> None:
        """End the wait that is under way, or else the next one.  Never blocks."""
        self._woken.set()
        self.look_again()

    def look_again(self) -> None:
        """Have the wait that is under way start over with a read, which may raise an error.  Never blocks."""
        with self._state:
            connection = self._connection
        if connection is not None:
            connection.channel.close()

    def wait(self, look: Callable[[], tuple[Any, int]], request: Any, deadline: float) -> Any:
        """Return etcd's record of a key once it exists; ``None`` at ``deadline`` or when interrupted.

        ``look`` reads the key: it returns the record, or ``None``, and the revision at which it read.
        ``request`` begins a watch of the key from now on.

        Raises:
            StoreUnavailableError: etcd did not answer within the operation timeout.
        """
        try:
            pause = _FIRST_PAUSE_SECONDS
            while not self._woken.is_set():
                found, revision = look()
                if found is not None or monotonic() >= deadline:
                    return found
                began = monotonic()
                found = self._watch(request, look, revision, deadline)
                if found is not None or monotonic() >= deadline:
                    return found
                # Only watches that end soon are begun again ever more slowly.  The pause is random, because a member
                # that dies ends the watches of many nodes at once.
                pause = _FIRST_PAUSE_SECONDS if monotonic() - began > 1.0 else min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._woken.wait(min(pause * random.uniform(0.5, 1.0), max(0.0, deadline - monotonic())))
            return None
        finally:
            self._woken.clear()

    def _watch(self, request: Any, look: Callable[[], tuple[Any, int]], revision: int, deadline: float) -> Any:
        """Watch once; return the record that was written after ``revision``, at which the key did not exist.

        Return ``None`` if the watch ended.  Whether the reason is permanent is seen at the next read.
        """
        client = self._client
        connection, stream = client.begin_watch(), None
        with self._state:
            self._connection = connection
            is_late = self._woken.is_set()
        try:
            if is_late:
                return None
            stream = client.watch(connection, request, max(0.001, deadline - monotonic()))
            for answer in stream:
                if answer.canceled:
                    return None
                # A member that lags behind may begin before the read, and report a key that was removed by then.
                for event in answer.events:
                    if event.kv.mod_revision > revision:
                        return event.kv
                if answer.created and answer.header.revision > revision:
                    found, revision = look()
                    if found is not None:
                        return found
            return None
        except CallError as error:
            if not self._woken.is_set() and monotonic() < deadline:
                client.note_watch_failure(connection, error)
            return None
        finally:
            with self._state:
                self._connection = None
            client.end_watch(connection, stream)
