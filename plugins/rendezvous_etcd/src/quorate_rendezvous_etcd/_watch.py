"""Waiting for a key: read it, then watch it from now on, and read it again if anything was written in between.

A watch could as well be asked to begin at the revision of the reading.  But etcd counts one that begins in the past,
be it by a single write of any other node, among those that have to catch up, and sees to these ten times a second:
a word that is written in that time then takes 50 ms, where it takes one.

A watch ends when its member dies or loses its leader; it then begins anew with a reading.  What does not live here: the
requests of everything else (:mod:`._store`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, final

from quorate.clock import monotonic

from ._http2 import CallError
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

    def wait(self, look: Callable[[], tuple[Any, int]], request: Any, deadline: float) -> Any:
        """Return etcd's record of a key once it exists; ``None`` at ``deadline`` or when interrupted.

        ``look`` reads the key: it returns the record, or ``None``, and the revision at which it read.
        ``request`` is the one that watches it from now on.

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
                found = self._watch(request, look, revision, deadline)
                if found is not None or monotonic() >= deadline:
                    return found
                # A watch that has lasted was a good one.  Jittered: a dying member ends the watches of many nodes.
                pause = _FIRST_PAUSE_SECONDS if monotonic() - began > 1.0 else min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._woken.wait(min(pause * random.uniform(0.5, 1.0), max(0.0, deadline - monotonic())))
            return None
        finally:
            self._woken.clear()

    def _watch(self, request: Any, look: Callable[[], tuple[Any, int]], revision: int, deadline: float) -> Any:
        """Watch once; returns the record that was written after ``revision``, at which the key did not exist.

        ``None`` if the watch ended, for whatever reason.

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
                if answer.canceled:
                    return None
                # A member that lags behind may begin before the reading, and tell what was removed by then.
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
                transport.note_failure(connection, error)
            return None
        finally:
            with self._state:
                self._connection = None
            transport.end_watch(connection, stream)
