"""Membership in a job: joining it, staying a member, noticing that it is gone, leaving it.

Whoever was away for so long that the job went on, or ended, without it finds another token in the job's directory, or
none, and never writes into the next job's keys.  What does not live here: what the directory looks like and how it is
removed (:mod:`._v2_directory`), and the store's operations (:mod:`._v2_store`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import NoReturn, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError

from ._settings import Settings, refuse_other_bounds
from ._v2_client import NOT_FOUND, Caller, InterruptedCallError, RefusedError, Route, unexpected
from ._v2_directory import CLOSING, JobDirectory
from ._v2_format import escape, new_stamp

__all__ = ["Membership"]

# How long a job that seems to have lost all members is watched before it is taken for dead: after an outage of etcd
# the members' entries have expired, and each comes back with its next refresh.
_GRACE_SECONDS = 4.0
_RETRY_SECONDS = 0.5
# How long a leaving member tries to say so; the job is over for it, and expiry does the same later.


@final
class Membership:
    """This node's membership in the job that ``settings`` name.

    ``keys`` is the path below which the job's keys are, once :meth:`join` has returned; ``on_lost`` is called, on any
    thread, when the job is found to be gone.
    """

    def __init__(self, settings: Settings, route: Route) -> None:
        self._settings = settings
        self._name = escape(new_stamp())
        self._token = ""
        self.keys = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._caller = Caller(route)
        self._directory = JobDirectory(self._caller, settings)
        self._root = self._directory.root
        self._verifying = threading.Lock()
        self._lost = ""
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="quorate-etcd-v2-lease", daemon=True)

    # --- joining --------------------------------------------------------------------------------------------------

    def join(self, deadline: float) -> None:
        """Become a member of the job, a new one where there is none, and keep it alive from now on.

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
        self.keys = f"{self._root}/{self._token}/k"
        self._thread.start()

    def _try_to_join(self, deadline: float) -> bool:
        # Read first: where something of somebody else's stands, it must not even be given a time to live.
        current, index = self._directory.read_current(deadline)
        if current is None:
            return self._found(deadline)
        if self._is_deserted(current, index, deadline):
            self._directory.dissolve(current, index, deadline)
            return False
        token = current.removeprefix(CLOSING)
        refuse_other_bounds(self._settings, self._directory.bounds_of(token))
        try:
            return self._enter(token, deadline)
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return False  # it has expired just now

    def _found(self, deadline: float) -> bool:
        """Start a new job; returns whether this node was the first to."""
        token = self._directory.new_token()
        self._directory.create(token, deadline)
        # The entry comes first: nobody may ever see a job without a member, or it would be taken for deserted.
        self._put_entry(token, deadline)
        if not self._directory.create_current(token, deadline):
            self._directory.remove(token, deadline)
            return False
        # Where the directory had just been removed, it is a new one now, that would stay for ever.
        self._directory.create(token, deadline)
        self._token = token
        self._sweep(deadline)
        return True

    def _sweep(self, deadline: float) -> None:
        try:
            self._directory.sweep(deadline)
        except (RefusedError, QuorateError):
            pass  # who may not list the prefix, for example, leaves it to others

    def _enter(self, token: str, deadline: float) -> bool:
        """Become a member of the job ``token``; returns False if it is being removed."""
        self._put_entry(token, deadline)
        while True:
            current, index = self._directory.read_current(deadline)
            if current == token:
                self._directory.refresh(token, deadline)
                self._token = token
                return True
            if current != CLOSING + token:
                # Its last member left: what has just been written is all there is of it.
                self._directory.remove(token, deadline)
                return False
            # Its last member is about to remove it, and cannot if this succeeds.
            self._directory.swap_current(index, token, deadline)

    def _put_entry(self, token: str, deadline: float) -> None:
        ttl = self._settings.member_ttl_seconds
        self._caller.put(f"{self._root}/{token}/members/{self._name}", deadline, value="", ttl=ttl)

    def _is_deserted(self, current: str, index: int, deadline: float) -> bool:
        """Return whether no member is left of the job, and none comes back within the grace period."""
        token = current.removeprefix(CLOSING)
        if not self._directory.is_empty(token, deadline):
            return False
        end = min(deadline, monotonic() + _GRACE_SECONDS)
        # A job that somebody has begun to remove was left in good order; nobody is to come back to it.
        while current == token and monotonic() < end:
            change = self._caller.poll(f"{self._root}/{token}/members", index + 1, end - monotonic(), recursive=True)
            if not self._directory.is_empty(token, deadline):
                return False
            if change is not None:
                index = int(change.node.get("modifiedIndex", index))
        return True

    # --- leaving --------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Stop being a member; the last one removes the job.  What fails here, etcd does when the entries expire."""
        self._leaving.set()
        self._caller.interrupt()
        if self._thread.ident is not None:
            self._thread.join(2 * self._settings.operation_timeout_seconds)
        self._caller.resume()
        if self._token and not self._lost:
            try:
                self._remove_entry(monotonic() + self._settings.leave_seconds)
            except (QuorateError, RefusedError, InterruptedCallError):
                pass
        self._caller.close()

    def _remove_entry(self, deadline: float) -> None:
        token = self._token
        self._caller.delete(f"{self._root}/{token}/members/{self._name}", deadline)
        if not self._directory.is_empty(token, deadline):
            return
        current, index = self._directory.read_current(deadline)
        if current is not None and current.removeprefix(CLOSING) == token:
            if self._settings.keep:
                self._directory.swap_current(index, CLOSING + token, deadline)  # left in good order
                return
            self._directory.dissolve(current, index, deadline)
        self._directory.remove_empty_directories(deadline)

    # --- staying --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse to go on where the job may have expired; looks at it again where that cannot be excluded.

        Raises:
            StoreLostError: the job is gone, or went on without this node.
            StoreUnavailableError: it may have expired, and etcd does not answer.
        """
        if self._lost:
            raise StoreLostError(self._lost)
        # etcd counts the time to live from when it got the refresh, which is later than when it was sent.
        if monotonic() - self._directory.refreshed > 0.9 * self._settings.key_ttl_seconds:
            self.verify()

    def verify(self) -> None:
        """Look whether etcd still has the job, as it may not after it was away.  Raises as :meth:`check` does."""
        with self._verifying:
            if self._lost:
                raise StoreLostError(self._lost)
            deadline = monotonic() + self._settings.operation_timeout_seconds
            try:
                self._refresh_entry(deadline)
                if monotonic() - self._directory.refreshed > self._settings.key_ttl_seconds / 3:
                    self._directory.refresh(self._token, deadline)
            except RefusedError as refused:
                if refused.code != NOT_FOUND:
                    raise unexpected(refused, self._root) from refused
                self._lose(deadline)

    def _refresh_entry(self, deadline: float) -> None:
        ttl = self._settings.member_ttl_seconds
        path = f"{self._root}/{self._token}/members/{self._name}"
        try:
            self._caller.put(path, deadline, ttl=ttl, prevExist=True, refresh=True)
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            # It has expired while this node, or etcd, was away; the job may have gone on.
            if not self._enter(self._token, deadline):
                self._lose(deadline)

    def _lose(self, deadline: float) -> NoReturn:
        try:
            # What this node wrote before it noticed would stay for ever.
            self._directory.remove_empty_directories(deadline)
        except (QuorateError, RefusedError):
            pass
        self._lost = (
            f"etcd no longer has the job {self._settings.run_id!r} that this node belonged to (at {self._root}): "
            "it was removed, expired while nobody could refresh it, or etcd lost its data. Start the job again"
        )
        self.on_lost()
        raise StoreLostError(self._lost)

    def _keep(self) -> None:
        interval = self._settings.member_ttl_seconds / 3
        pause = interval
        while not self._leaving.wait(pause * random.uniform(0.8, 1.0)):
            try:
                self.verify()
                pause = interval
            except StoreLostError:
                return  # the next operation says so
            except InterruptedCallError:
                return
            except QuorateError:
                pause = min(interval, _RETRY_SECONDS)  # etcd is away; be there soon after it comes back
