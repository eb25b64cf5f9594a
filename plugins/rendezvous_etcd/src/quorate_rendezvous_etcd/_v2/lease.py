"""The leases of a job in etcd's API v2, which are times to live: of the job's directory and of each member's entry.

etcd 3.5 has lost the ability to refresh a directory (3.4 has it).  There the directory has no time to live.  A key
``alive`` in it has one instead, and a node that begins a job under the same prefix removes the directories that have
neither ``alive`` nor members.

What does not live here: the thread that refreshes them (:mod:`quorate_rendezvous_etcd._keeper`), and what a lease that
has ended means (:mod:`.member`).
"""

from __future__ import annotations

from typing import final

from quorate.clock import monotonic

from .._settings import Settings
from .answers import EXISTS, NOT_FILE, NOT_FOUND, RefusedError, expecting
from .client import Client


@final
class Leases:
    """The leases below the directory ``root``, refreshed through ``client``.  Deadlines are in monotonic seconds.

    Every method raises what :meth:`Client.call` raises.  A RefusedError other than those that are named has another
    program as its cause.
    """

    def __init__(self, client: Client, settings: Settings, root: str) -> None:
        self._client, self._settings, self._root = client, settings, root
        #: When the job's lease was last refreshed (monotonic seconds).
        self.refreshed = monotonic()
        #: Whether etcd can refresh a directory; known after the first refresh.
        self.can_refresh_directories = True

    def create(self, token: str, deadline: float) -> None:
        """Make the directory, if it does not exist, and begin the lease of the incarnation ``token``."""
        while True:
            try:
                self.refresh(token, deadline)
                return
            except RefusedError as refused:
                if refused.code != NOT_FOUND or monotonic() >= deadline:
                    raise
            # Without a time to live: where it cannot be refreshed it must never be set.  A node that leaves just now
            # may remove the directory again, as it is empty.
            with expecting(EXISTS):
                self._client.put(self._root, deadline, dir=True, prevExist=False)
            if not self.can_refresh_directories:
                self._client.put(self._alive(token), deadline, value="", ttl=self._settings.key_ttl_seconds)

    def refresh(self, token: str, deadline: float) -> None:
        """Refresh the lease of the incarnation ``token``.  Raises RefusedError (NOT_FOUND) if it has ended."""
        started, ttl = monotonic(), self._settings.key_ttl_seconds
        if not self._refresh_directory(deadline):
            self._client.put(self._alive(token), deadline, ttl=ttl, prevExist=True, refresh=True)
        self.refreshed = started

    def is_alive(self, token: str, deadline: float) -> bool:
        """Return whether the incarnation ``token`` has its key ``alive``."""
        with expecting(NOT_FOUND):
            self._client.get(self._alive(token), deadline)
            return True
        return False

    def put_entry(self, token: str, name: str, deadline: float) -> None:
        """Write the entry of the member ``name``, with its lease."""
        self._client.put(self.entry(token, name), deadline, value="", ttl=self._settings.member_ttl_seconds)

    def refresh_entry(self, token: str, name: str, deadline: float) -> None:
        """Refresh the lease of the member ``name``.  Raises RefusedError (NOT_FOUND) if it has ended."""
        ttl = self._settings.member_ttl_seconds
        self._client.put(self.entry(token, name), deadline, ttl=ttl, prevExist=True, refresh=True)

    def entry(self, token: str, name: str) -> str:
        """Return the path of the entry of the member ``name``."""
        return f"{self._root}/{token}/members/{name}"

    def _alive(self, token: str) -> str:
        return f"{self._root}/{token}/alive"

    def _refresh_directory(self, deadline: float) -> bool:
        """Refresh the directory's time to live; return whether this etcd can do that."""
        if self.can_refresh_directories:
            ttl = self._settings.key_ttl_seconds
            with expecting(NOT_FILE):
                self._client.put(self._root, deadline, dir=True, ttl=ttl, prevExist=True, refresh=True)
                return True
            self.can_refresh_directories = False
        return False
