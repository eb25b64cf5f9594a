"""The directory of a job in etcd's API v2: which incarnation it holds, how it is kept alive, how it is removed.

Below ``/<prefix>/<run id>``, a directory that expires unless a member refreshes it, are::

    current            the token of the job's incarnation, "closing:" before it while its last member removes it
    <token>/members/   one entry for each member, which expires soon after its agent died
    <token>/k/         the keys of the store
    <token>/alive      only where directories cannot be refreshed: expires unless a member refreshes it

etcd 3.5 has lost the ability to refresh a directory (3.4 has it).  There the directory stays, ``alive`` goes in its
place, and whoever begins a job under the same prefix removes the directories that have neither ``alive`` nor members.

The token keeps two jobs apart that have the same run id one after the other.  It ends in the job's bounds, so that two
jobs of different size that have it at once are kept apart, too.  What does not live here: who is a member
(:mod:`._v2_member`).
"""

from __future__ import annotations

from typing import final

from quorate.clock import monotonic

from ._settings import Settings
from ._v2_client import COMPARE_FAILED, EXISTS, NOT_EMPTY, NOT_FILE, NOT_FOUND, Caller, RefusedError
from ._v2_format import escape, new_stamp

__all__ = ["CLOSING", "JobDirectory"]

CLOSING = "closing:"


@final
class JobDirectory:
    """The directory at ``root``, seen through ``caller``.  Every deadline is in monotonic seconds.

    Raises (every method): RefusedError for what only foreign hands can have brought about, and what
    :meth:`Caller.call` raises.
    """

    def __init__(self, caller: Caller, settings: Settings, root: str = "") -> None:
        self._caller, self._settings = caller, settings
        self.root = root or f"/{settings.prefix}/{escape(settings.run_id)}"
        #: When etcd was last told that the job is alive (monotonic seconds).
        self.refreshed = monotonic()
        self._can_refresh = True

    # --- tokens ---------------------------------------------------------------------------------------------------

    def new_token(self) -> str:
        """Return a token for a new incarnation."""
        return f"{escape(new_stamp())}.{self._settings.min_nodes}.{self._settings.max_nodes}"

    @staticmethod
    def bounds_of(token: str) -> tuple[int, int] | None:
        """Return the bounds of the job with this token; ``None`` if it does not tell."""
        _, *bounds = token.rsplit(".", 2)
        if len(bounds) == 2 and all(number.isdecimal() for number in bounds):
            return int(bounds[0]), int(bounds[1])
        return None

    def read_current(self, deadline: float) -> tuple[str | None, int]:
        """Return what ``current`` holds, ``None`` where there is none, and its index."""
        try:
            answer = self._caller.get(f"{self.root}/current", deadline)
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return None, 0
        return str(answer.node.get("value", "")), int(answer.node.get("modifiedIndex", 0))

    def create_current(self, token: str, deadline: float) -> bool:
        """Write ``current`` where there is none; returns whether this call did."""
        try:
            self._caller.put(f"{self.root}/current", deadline, value=token, prevExist=False)
        except RefusedError as refused:
            if refused.code != EXISTS:
                raise
            return self.read_current(deadline)[0] == token  # it is ours, sent twice
        return True

    def swap_current(self, index: int, value: str, deadline: float) -> int:
        """Write ``current`` if it has not changed since ``index``; returns its new index, 0 where it had."""
        try:
            node = self._caller.put(f"{self.root}/current", deadline, value=value, prevIndex=index).node
        except RefusedError as refused:
            if refused.code not in (COMPARE_FAILED, NOT_FOUND):
                raise
            return 0
        return int(node["modifiedIndex"])

    # --- staying --------------------------------------------------------------------------------------------------

    def create(self, token: str, deadline: float) -> None:
        """Make the directory, if it is not there, for the incarnation ``token``, and keep it alive."""
        while True:
            try:
                self.refresh(token, deadline)
                return
            except RefusedError as refused:
                if refused.code != NOT_FOUND or monotonic() >= deadline:
                    raise
            # Without a time to live: where that cannot be put off later, it must never be set.  Whoever leaves just now
            # may remove it again, as it is empty.
            try:
                self._caller.put(self.root, deadline, dir=True, prevExist=False)
            except RefusedError as refused:
                if refused.code != EXISTS:
                    raise
            if not self._can_refresh:
                self._caller.put(self._alive(token), deadline, value="", ttl=self._settings.key_ttl_seconds)

    def refresh(self, token: str, deadline: float) -> None:
        """Keep the incarnation ``token`` alive.  Raises RefusedError (NOT_FOUND) if it has expired."""
        started, ttl = monotonic(), self._settings.key_ttl_seconds
        if not self._refresh_directory(deadline):
            self._caller.put(self._alive(token), deadline, ttl=ttl, prevExist=True, refresh=True)
        self.refreshed = started

    def _alive(self, token: str) -> str:
        return f"{self.root}/{token}/alive"

    def _refresh_directory(self, deadline: float) -> bool:
        """Put off the end of the directory; returns whether this etcd can do that."""
        if self._can_refresh:
            ttl = self._settings.key_ttl_seconds
            try:
                self._caller.put(self.root, deadline, dir=True, ttl=ttl, prevExist=True, refresh=True)
            except RefusedError as refused:
                if refused.code != NOT_FILE:
                    raise
                self._can_refresh = False
        return self._can_refresh

    # --- removing -------------------------------------------------------------------------------------------------

    def is_empty(self, token: str, deadline: float) -> bool:
        """Return whether the job has no members, at a cost that does not grow with their number."""
        try:
            # A directory that is not empty cannot be removed like this; whoever needs it later makes it again.
            self._caller.delete(f"{self.root}/{token}/members", deadline, dir=True)
        except RefusedError as refused:
            if refused.code != NOT_EMPTY:
                raise
            return False
        return True

    def remove(self, token: str, deadline: float) -> None:
        """Remove all that there is of the incarnation ``token``, but not ``current``."""
        self._caller.delete(f"{self.root}/{token}", deadline, recursive=True)

    def dissolve(self, current: str, index: int, deadline: float) -> None:
        """Remove the job unless a member turns up; only ever one node gets to remove it."""
        token = current.removeprefix(CLOSING)
        marked = self.swap_current(index, CLOSING + token, deadline)
        if not marked:
            return  # somebody else is at it, or has come in
        if not self.is_empty(token, deadline):
            self.swap_current(marked, token, deadline)
            return
        try:
            self._caller.delete(f"{self.root}/current", deadline, prevIndex=marked)
        except RefusedError as refused:
            if refused.code != COMPARE_FAILED:
                raise
            return  # somebody came in
        self.remove(token, deadline)

    def remove_empty_directories(self, deadline: float) -> None:
        """Remove the job's directory, and with the last job the prefix's, if nothing is in them."""
        path = self.root
        while path:
            self._caller.delete(path, deadline, dir=True)
            path = path.rpartition("/")[0]

    def sweep(self, deadline: float) -> None:
        """Remove the jobs under the same prefix that were killed, where etcd does not do that by itself."""
        if self._can_refresh:
            return
        for node in self._caller.get(f"/{self._settings.prefix}", deadline).node.get("nodes") or ():
            if node.get("dir") and "ttl" not in node and node["key"] != self.root:
                JobDirectory(self._caller, self._settings, node["key"])._sweep_one(deadline)

    def _sweep_one(self, deadline: float) -> None:
        try:
            current, index = self.read_current(deadline)
            token = (current or "").removeprefix(CLOSING)
            # Whatever a job of ours has not written there is left alone.
            if current is None or self.bounds_of(token) is None:
                return
            if not self._is_alive(token, deadline) and self.is_empty(token, deadline):
                self.dissolve(current, index, deadline)
                self._caller.delete(self.root, deadline, dir=True)
        except RefusedError:
            pass  # it is no job of ours, or somebody comes in just now

    def _is_alive(self, token: str, deadline: float) -> bool:
        try:
            self._caller.get(self._alive(token), deadline)
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return False
        return True
