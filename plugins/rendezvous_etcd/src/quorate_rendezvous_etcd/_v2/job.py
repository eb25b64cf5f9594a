"""What etcd holds of a job over API v2, and where: its incarnations, and how they are removed.

Below ``/<prefix>/<run id>``, a directory that expires unless a member refreshes it, are::

    current            the token of the job's incarnation, "closing:" before it once its last member has left
    <token>/members/   one entry for each member, which expires soon after its agent died
    <token>/k/         the keys of the store
    <token>/alive      only where directories cannot be refreshed: expires unless a member refreshes it

The token distinguishes the jobs that use a run id one after the other.  It ends in ``min_nodes`` and
``max_nodes``, so that jobs of different size that use it at once are distinguished, too.

What does not live here: the times to live (:mod:`.lease`), joining and leaving (:mod:`.member`).
"""

from __future__ import annotations

import re
from typing import final

from .._settings import Settings
from .answers import COMPARE_FAILED, EXISTS, NOT_EMPTY, NOT_FOUND, RefusedError, expecting
from .client import Client
from .format import escape, new_stamp
from .lease import Leases

CLOSING = "closing:"
_TOKEN = re.compile(r"[A-Za-z0-9~_.-]{1,100}\.([0-9]{1,9})\.([0-9]{1,9})")


@final
class JobDirectory:
    """The directory at ``root``, read and written through ``client``.  Deadlines are in monotonic seconds.

    Every method raises what :meth:`Client.call` raises.  A RefusedError has another program as its cause.
    """

    def __init__(self, client: Client, settings: Settings, root: str = "") -> None:
        self._client, self._settings = client, settings
        self.root = root or f"/{settings.prefix}/{escape(settings.run_id)}"
        self.leases = Leases(client, settings, self.root)

    # --- tokens -------------------------------------------------------------------------------------------------------

    def keys(self, token: str) -> str:
        """Return the path of the keys of the incarnation ``token``."""
        return f"{self.root}/{token}/k"

    def new_token(self) -> str:
        """Return a token for a new incarnation."""
        return f"{escape(new_stamp())}.{self._settings.min_nodes}.{self._settings.max_nodes}"

    @staticmethod
    def node_limits_of(token: str) -> tuple[int, int] | None:
        """Return ``min_nodes`` and ``max_nodes`` of the job with this token; ``None`` if quorate has not written it."""
        match = _TOKEN.fullmatch(token)
        return None if match is None else (int(match[1]), int(match[2]))

    def read_current(self, deadline: float) -> tuple[str | None, int]:
        """Return the value of ``current``, ``None`` where it does not exist, and its index."""
        with expecting(NOT_FOUND):
            node = self._client.get(f"{self.root}/current", deadline).node
            return node.value or "", node.modified
        return None, 0

    def create_current(self, token: str, deadline: float) -> bool:
        """Write ``current`` where it does not exist; return whether this call did."""
        with expecting(EXISTS):
            self._client.put(f"{self.root}/current", deadline, value=token, prevExist=False)
            return True
        return self.read_current(deadline)[0] == token  # this call wrote it, with an earlier attempt

    def swap_current(self, index: int, value: str, deadline: float) -> int:
        """Write ``current`` if it has not changed since ``index``; return its new index, 0 where it has changed."""
        with expecting(COMPARE_FAILED, NOT_FOUND):
            return self._client.put(f"{self.root}/current", deadline, value=value, prevIndex=index).node.modified
        return 0

    # --- removing -----------------------------------------------------------------------------------------------------

    def is_empty(self, token: str, deadline: float) -> bool:
        """Return whether the incarnation has no members, at a cost that does not grow with their number."""
        with expecting(NOT_EMPTY):
            # This cannot remove a directory that is not empty; a later member makes it again.
            self._client.delete(f"{self.root}/{token}/members", deadline, dir=True)
            return True
        return False

    def remove(self, token: str, deadline: float) -> None:
        """Remove all of the incarnation ``token``, but not ``current``."""
        self._client.delete(f"{self.root}/{token}", deadline, recursive=True)

    def mark_as_left(self, current: str, index: int, deadline: float) -> int:
        """Say that the job was left for good, unless a member joins, so that no node waits for its members.

        Removes nothing.  A member that comes back takes the mark away.  Only one node at a time can set it.

        Returns:
            The new index of ``current``; 0: another node was first, or there is a member.
        """
        token = current.removeprefix(CLOSING)
        marked = self.swap_current(index, CLOSING + token, deadline)
        if marked and not self.is_empty(token, deadline):
            self.swap_current(marked, token, deadline)
            return 0
        return marked

    def dissolve(self, current: str, index: int, deadline: float) -> None:
        """Remove the job unless a member joins; only one node at a time can do so."""
        marked = self.mark_as_left(current, index, deadline)
        if not marked:
            return  # another node removes it, or has joined
        with expecting(COMPARE_FAILED):  # another node has joined
            self._client.delete(f"{self.root}/current", deadline, prevIndex=marked)
            self.remove(current.removeprefix(CLOSING), deadline)

    def remove_empty_directories(self, deadline: float) -> None:
        """Remove the job's directory, and with the last job the prefix's, if they are empty."""
        path = self.root
        while path:
            self._client.delete(path, deadline, dir=True)
            path = path.rpartition("/")[0]

    def sweep(self, deadline: float) -> None:
        """Remove the killed jobs under the same prefix, where etcd does not do that by itself."""
        if self.leases.can_refresh_directories:
            return
        for node in self._client.get(f"/{self._settings.prefix}", deadline).node.children:
            if node.is_directory and not node.expires and node.key != self.root:
                JobDirectory(self._client, self._settings, node.key)._sweep_one(deadline)

    def _sweep_one(self, deadline: float) -> None:
        try:
            current, index = self.read_current(deadline)
            token = (current or "").removeprefix(CLOSING)
            # What a job of quorate has not written is left alone.
            if current is None or self.node_limits_of(token) is None:
                return
            if not self.leases.is_alive(token, deadline) and self.is_empty(token, deadline):
                self.dissolve(current, index, deadline)
                self._client.delete(self.root, deadline, dir=True)
        except RefusedError:
            pass  # it is not a job of quorate, or another node joins it just now
