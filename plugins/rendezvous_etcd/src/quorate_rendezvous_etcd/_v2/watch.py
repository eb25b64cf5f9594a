"""Waiting for a key over API v2: read it, then poll for a change after that read.

Nothing is asked for again and again.  etcd answers a long poll from the index of the read, so no write is missed.

What does not live here: the store's other operations (:mod:`.store`).
"""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import final

from quorate.clock import monotonic

from .answers import NOT_FOUND, Node, RefusedError
from .client import Client, InterruptedCallError
from .member import Membership

# A long poll is begun again this often, because a frozen member looks like one without news.
_RENEW_SECONDS = 30.0


@final
class Watcher:
    """The store's one wait, which another thread can interrupt.

    Arguments:
        client: used for waiting alone.
        membership: checked before each read, and after each new connection.
        read_timeout_seconds: how long a read may take.
    """

    def __init__(self, client: Client, membership: Membership, read_timeout_seconds: float) -> None:
        self._client, self._membership = client, membership
        self._read_timeout_seconds = read_timeout_seconds
        self._state = threading.Lock()
        self._is_waiting = self._is_interrupted = self._is_closed = False

    def interrupt(self) -> None:
        """End the wait that is under way, or else the next one.  Never blocks."""
        with self._state:
            self._is_interrupted = True
            if self._is_waiting:
                self._client.interrupt()

    def close(self) -> None:
        """End the wait that is under way; later waits end at once.  Never blocks."""
        with self._state:
            self._is_closed = True
        self._client.close()

    def wait(self, path: str, deadline: float) -> Node | None:
        """Return the node at ``path`` once it exists; ``None`` at ``deadline`` or when interrupted.

        Raises:
            StoreLostError: the job is gone.
            StoreUnavailableError: etcd did not answer for the read timeout.
        """
        with self._state:
            if self._is_interrupted:
                self._is_interrupted = False
                return None
            self._is_waiting = True
        try:
            return self._wait(path, deadline)
        except InterruptedCallError:
            return None
        finally:
            with self._state:
                self._is_waiting = self._is_interrupted = False
                if not self._is_closed:
                    self._client.resume()

    def _wait(self, path: str, deadline: float) -> Node | None:
        client, verified = self._client, self._membership.verified
        while True:
            self._membership.check()
            node, index = verified(client, partial(self._read, path, deadline))
            left = deadline - monotonic()
            if node is None and left > 0:
                limit = min(left, _RENEW_SECONDS * random.uniform(0.8, 1.0))
                # Recursive, because a counter is a directory.
                change = verified(client, partial(client.poll, path, index + 1, limit, recursive=True))
                # A change without a value is a removal, or in a directory; the next read shows what is there now.
                if change is not None and change.node.value is not None and change.node.key == path:
                    node = change.node
            if node is not None or left <= 0:
                return node

    def _read(self, path: str, deadline: float) -> tuple[Node | None, int]:
        """Return the node at ``path``; where it does not exist, ``None`` and the store's index."""
        limit = min(self._read_timeout_seconds, max(0.0, deadline - monotonic()) + 1.0)
        try:
            return self._client.get(path, monotonic() + limit).node, 0
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return None, refused.index
