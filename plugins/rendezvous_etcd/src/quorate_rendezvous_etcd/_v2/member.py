"""Membership in a job over API v2: joining it, staying, noticing that it is gone, leaving.

A node that was away while the job went on or ended without it finds another token in the job's directory, or none.  It
gets StoreLostError, and cannot write into the next job.

What does not live here: the directory (:mod:`.job`), the leases (:mod:`.lease`), the store's operations
(:mod:`.store`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreCorruptError, StoreLostError, StoreUnavailableError

from .._keeper import LeaseKeeper
from .._settings import Settings
from .answers import NOT_FOUND, RefusedError, expecting, unexpected
from .client import Client, InterruptedCallError, Route
from .format import escape, new_stamp
from .job import CLOSING, JobDirectory
from .lanes import Lanes

_T = TypeVar("_T")
# How long a job without members is watched before it counts as dead.  After an outage of etcd the members' entries have
# expired, and each comes back with its next refresh.
_GRACE_SECONDS = 4.0
# How often it is looked meanwhile whether a guardian has said that the job was left.
_LOOK_SECONDS = 0.5


@final
class Membership:
    """This node's membership in the job that ``settings`` name.

    ``on_waiting`` is called with a sentence if joining has to wait for members that may come back, for at most
    ``grace_seconds``.

    ``token`` is the job's incarnation and ``keys`` the path of its keys, once :meth:`join` has returned.  ``on_lost``
    is called, on any thread, when the job is gone.  ``lost`` says why it is gone.
    """

    def __init__(
        self,
        settings: Settings,
        route: Route,
        on_waiting: Callable[[str], None],
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        self._settings, self._on_waiting, self._grace_seconds = settings, on_waiting, grace_seconds
        self._name = escape(new_stamp())
        self.token = ""
        self.keys = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._client = Client(route)
        self._directory = JobDirectory(self._client, settings)
        self._root, self._leases = self._directory.root, self._directory.leases
        self._verifying = threading.Lock()
        self.lost = ""
        interval = settings.member_ttl_seconds / 3
        self._keeper = LeaseKeeper("quorate-etcd-v2-lease", interval, self.verify, self.set_lost)

    @property
    def entry(self) -> str:
        """The path of this member's entry."""
        return self._leases.entry(self.token, self._name)

    # --- joining --------------------------------------------------------------------------------------------------

    def join(self, deadline: float) -> None:
        """Become a member of the job and stay one.  A job without members is replaced by a new one.

        Raises:
            StoreUnavailableError: etcd did not answer by ``deadline`` (monotonic seconds).
        """
        try:
            while not self._try_to_join(deadline):
                if monotonic() >= deadline:
                    raise StoreUnavailableError(
                        f"this node did not get into the job at {self._root} in etcd, "
                        "which other agents kept opening and removing meanwhile"
                    )
        except RefusedError as refused:
            raise unexpected(refused, self._root) from refused
        self.keys = self._directory.keys(self.token)
        self._keeper.start()

    def _try_to_join(self, deadline: float) -> bool:
        # Read first: a key of another program must not be given a time to live.
        current, index = self._directory.read_current(deadline)
        if current is None:
            return self._create(deadline)
        if self._is_dead(current, index, deadline):
            self._directory.dissolve(current, index, deadline)
            return False
        token = current.removeprefix(CLOSING)
        if self._directory.node_limits_of(token) is None:
            raise StoreCorruptError(f"{self._root}/current", "it was not written by quorate")
        with expecting(NOT_FOUND):
            return self._join_incarnation(token, deadline)
        return False  # it has expired just now

    def _create(self, deadline: float) -> bool:
        """Begin a new job; return whether this node was the first to do so."""
        token = self._directory.new_token()
        self._leases.create(token, deadline)
        # The entry comes first: a job without members counts as dead.
        self._leases.put_entry(token, self._name, deadline)
        if not self._directory.create_current(token, deadline):
            self._directory.remove(token, deadline)
            return False
        # The directory may have been removed and made again meanwhile, without a lease.
        self._leases.create(token, deadline)
        self.token = token
        with suppress(QuorateError):  # such as a user without the right to list the prefix; other nodes do it
            self._directory.sweep(deadline)
        return True

    def _join_incarnation(self, token: str, deadline: float) -> bool:
        """Become a member of the incarnation ``token``; return False if it is being removed."""
        self._leases.put_entry(token, self._name, deadline)
        while True:
            current, index = self._directory.read_current(deadline)
            if current == token:
                self._leases.refresh(token, deadline)
                self.token = token
                return True
            if current != CLOSING + token:
                # Its last member has left: only the entry that was just written is left of it.
                self._directory.remove(token, deadline)
                return False
            # Its last member is about to remove it, and cannot if this succeeds.
            self._directory.swap_current(index, token, deadline)

    def _is_dead(self, current: str, index: int, deadline: float) -> bool:
        """Return whether the job has no member, and none comes back within the grace period."""
        token = current.removeprefix(CLOSING)
        if not self._directory.is_empty(token, deadline):
            return False
        if current != token:
            return True  # its last member has left
        end = min(deadline, monotonic() + self._grace_seconds)
        self._on_waiting(
            f"no node is left of the last job with the run id {self._settings.run_id!r} in etcd; waiting up to "
            f"{self._grace_seconds:g} s for nodes that come back after an outage of etcd, before a new job begins"
        )
        while (left := end - monotonic()) > 0:
            path = f"{self._root}/{token}/members"
            change = self._client.poll(path, index + 1, min(left, _LOOK_SECONDS), recursive=True)
            if not self._directory.is_empty(token, deadline):
                return False
            if change is not None:
                index = max(index, change.node.modified)
            if self._directory.read_current(deadline)[0] != current:
                return True  # a guardian has marked it as left just now
        return True

    # --- leaving --------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Stop being a member; the last one removes the job.  Where that fails, the entries expire."""
        self._keeper.stop()
        self._client.interrupt()
        self._keeper.join(2 * self._settings.operation_timeout_seconds)
        self._client.resume()
        if self.token and not self.lost:
            with suppress(QuorateError, InterruptedCallError):
                self._remove_entry(monotonic() + self._settings.leave_seconds)
        self._client.close()

    def _remove_entry(self, deadline: float) -> None:
        token = self.token
        self._client.delete(self._leases.entry(token, self._name), deadline)
        if not self._directory.is_empty(token, deadline):
            return
        current, index = self._directory.read_current(deadline)
        if current is not None and current.removeprefix(CLOSING) == token:
            if self._settings.keep:
                self._directory.mark_as_left(current, index, deadline)  # the next job need not wait
                return
            self._directory.dissolve(current, index, deadline)
        self._directory.remove_empty_directories(deadline)

    # --- staying --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise an error where the job may have expired.

        Raises:
            StoreLostError: the job is gone, or went on without this node.
            StoreUnavailableError: it may have expired, and etcd does not answer.
        """
        if self.lost:
            raise StoreLostError(self.lost)
        # etcd counts the time to live from when it received the refresh, which is later than when it was sent.
        if monotonic() - self._leases.refreshed > 0.9 * self._settings.key_ttl_seconds:
            self.verify()

    def verified(self, client: Client | Lanes, step: Callable[[], _T]) -> _T:
        """Take a step.  If it took a new connection of ``client``, etcd was away: check that it still has the job."""
        connections = client.connections
        result = step()
        if client.connections != connections:
            self.verify()
        return result

    def verify(self) -> None:
        """Refresh this member's lease, and so check that etcd still has the job.  Raises as :meth:`check` does."""
        with self._verifying:
            if self.lost:
                raise StoreLostError(self.lost)
            deadline = monotonic() + self._settings.operation_timeout_seconds
            try:
                self._refresh_entry(deadline)
                if monotonic() - self._leases.refreshed > self._settings.key_ttl_seconds / 3:
                    self._leases.refresh(self.token, deadline)
            except RefusedError as refused:
                if refused.code != NOT_FOUND:
                    raise unexpected(refused, self._root) from refused
                self._lose(deadline)

    def _refresh_entry(self, deadline: float) -> None:
        with expecting(NOT_FOUND):
            self._leases.refresh_entry(self.token, self._name, deadline)
            return
        # It has expired while this node, or etcd, was away; the job may have gone on.
        if not self._join_incarnation(self.token, deadline):
            self._lose(deadline)

    def _lose(self, deadline: float) -> NoReturn:
        with suppress(QuorateError):
            # What this node has written meanwhile would stay.
            self._directory.remove_empty_directories(deadline)
        self.set_lost(
            f"etcd no longer has the job {self._settings.run_id!r} that this node belonged to (at {self._root}): "
            "it was removed, expired because it could not be refreshed, or etcd lost its data. Start the job again"
        )
        raise StoreLostError(self.lost)

    def set_lost(self, sentence: str) -> None:
        """Have every later operation raise StoreLostError with ``sentence``, and a wait that is under way end."""
        self.lost = sentence
        self.on_lost()
