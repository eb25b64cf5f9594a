"""Membership in a job: who keeps the job's directory in etcd alive, and who removes it.

Below ``/<prefix>/<run id>``, a directory that expires unless a member refreshes it, are::

    current            the token of the job's incarnation, "closing:" before it while its last member removes it
    <token>/members/   one entry for each member, which expires soon after its agent died
    <token>/k/         the keys of the store

The token keeps two jobs apart that have the same run id one after the other: whoever was away for so long that the
job went on, or ended, without it finds another token, or none, and never writes into the next job's keys.

What does not live here: the store's operations (:mod:`._v2_store`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import NoReturn, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError

from ._v2_client import (
    COMPARE_FAILED,
    EXISTS,
    NOT_EMPTY,
    NOT_FOUND,
    Caller,
    InterruptedCallError,
    RefusedError,
    Route,
    unexpected,
)
from ._v2_format import escape, new_stamp
from ._v2_settings import V2Settings

__all__ = ["Membership"]

_CLOSING = "closing:"
# How long a job that seems to have lost all members is watched before it is taken for dead: after an outage of etcd
# the members' entries have expired, and each comes back with its next refresh.
_GRACE_SECONDS = 4.0
_RETRY_SECONDS = 0.5
# How long a leaving member tries to say so; the job is over for it, and expiry does the same later.
_LEAVE_SECONDS = 2.0


@final
class Membership:
    """This node's membership in the job that ``settings`` name.

    ``keys`` is the path below which the job's keys are, once :meth:`join` has returned; ``on_lost`` is called, on any
    thread, when the job is found to be gone.
    """

    def __init__(self, settings: V2Settings, route: Route) -> None:
        self._settings = settings
        self._root = f"/{settings.prefix}/{escape(settings.run_id)}"
        self._name = escape(new_stamp())
        self._token = ""
        self.keys = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._caller = Caller(route)
        self._state = threading.Lock()
        self._verifying = threading.Lock()
        self._lost = ""
        self._directory_refreshed = self._member_refreshed = monotonic()
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
        self._refresh_directory(deadline, create=True)
        token, index = self._read_current(deadline)
        if token is None:
            return self._found(deadline)
        if self._is_deserted(token, index, deadline):
            self._dissolve(token, index, deadline)
            return False
        return self._enter(token.removeprefix(_CLOSING), deadline)

    def _found(self, deadline: float) -> bool:
        """Start a new job; returns whether this node was the first to."""
        token = escape(new_stamp())
        # The entry comes first: nobody may ever see a job without a member, or it would be taken for deserted.
        self._put_entry(token, deadline)
        try:
            self._caller.put(f"{self._root}/current", deadline, value=token, prevExist=False)
        except RefusedError as refused:
            if refused.code != EXISTS:
                raise
            if self._read_current(deadline)[0] != token:  # else it is ours, sent twice
                self._caller.delete(f"{self._root}/{token}", deadline, recursive=True)
                return False
        # Where the directory had just been removed, it is a new one now, that would stay for ever.
        self._refresh_directory(deadline, create=False)
        self._token = token
        return True

    def _enter(self, token: str, deadline: float) -> bool:
        """Become a member of the job ``token``; returns False if it is being removed."""
        self._put_entry(token, deadline)
        while True:
            current, index = self._read_current(deadline)
            if current == token:
                self._token = token
                return True
            if current != _CLOSING + token:
                # Its last member left: what has just been written is all there is of it.
                self._caller.delete(f"{self._root}/{token}", deadline, recursive=True)
                return False
            # Its last member is about to remove it, and cannot if this succeeds.
            self._swap_current(index, token, deadline)

    def _put_entry(self, token: str, deadline: float) -> None:
        started = monotonic()
        ttl = self._settings.member_ttl_seconds
        self._caller.put(f"{self._root}/{token}/members/{self._name}", deadline, value="", ttl=ttl)
        self._member_refreshed = started

    def _refresh_directory(self, deadline: float, *, create: bool) -> None:
        started = monotonic()
        ttl = self._settings.key_ttl_seconds
        try:
            self._caller.put(self._root, deadline, dir=True, ttl=ttl, prevExist=True, refresh=True)
        except RefusedError as refused:
            if refused.code != NOT_FOUND or not create:
                raise
            try:
                self._caller.put(self._root, deadline, dir=True, ttl=ttl, prevExist=False)
            except RefusedError as second:
                if second.code != EXISTS:
                    raise
        self._directory_refreshed = started

    def _read_current(self, deadline: float) -> tuple[str | None, int]:
        try:
            answer = self._caller.get(f"{self._root}/current", deadline)
        except RefusedError as refused:
            if refused.code != NOT_FOUND:
                raise
            return None, 0
        return str(answer.node.get("value", "")), int(answer.node.get("modifiedIndex", 0))

    def _swap_current(self, index: int, value: str, deadline: float) -> int:
        """Write ``current`` if it has not changed since ``index``; returns its new index, 0 where it had."""
        try:
            node = self._caller.put(f"{self._root}/current", deadline, value=value, prevIndex=index).node
        except RefusedError as refused:
            if refused.code not in (COMPARE_FAILED, NOT_FOUND):
                raise
            return 0
        return int(node["modifiedIndex"])

    # --- removing -------------------------------------------------------------------------------------------------

    def _is_empty(self, token: str, deadline: float) -> bool:
        """Return whether the job has no members, at a cost that does not grow with their number."""
        try:
            # A directory that is not empty cannot be removed like this; whoever needs it later makes it again.
            self._caller.delete(f"{self._root}/{token}/members", deadline, dir=True)
        except RefusedError as refused:
            if refused.code != NOT_EMPTY:
                raise
            return False
        return True

    def _is_deserted(self, current: str, index: int, deadline: float) -> bool:
        """Return whether no member is left of the job, and none comes back within the grace period."""
        token = current.removeprefix(_CLOSING)
        if not self._is_empty(token, deadline):
            return False
        end = min(deadline, monotonic() + _GRACE_SECONDS)
        # A job that somebody has begun to remove was left in good order; nobody is to come back to it.
        while current == token and monotonic() < end:
            change = self._caller.poll(f"{self._root}/{token}/members", index + 1, end - monotonic(), recursive=True)
            if not self._is_empty(token, deadline):
                return False
            if change is not None:
                index = int(change.node.get("modifiedIndex", index))
        return True

    def _dissolve(self, current: str, index: int, deadline: float) -> None:
        """Remove the job unless a member turns up; only ever one node gets to remove it."""
        token = current.removeprefix(_CLOSING)
        marked = self._swap_current(index, _CLOSING + token, deadline)
        if not marked:
            return  # somebody else is at it, or has come in
        if not self._is_empty(token, deadline):
            self._swap_current(marked, token, deadline)
            return
        try:
            self._caller.delete(f"{self._root}/current", deadline, prevIndex=marked)
        except RefusedError as refused:
            if refused.code != COMPARE_FAILED:
                raise
            return  # somebody came in
        self._caller.delete(f"{self._root}/{token}", deadline, recursive=True)

    def leave(self) -> None:
        """Stop being a member; the last one removes the job.  What fails here, etcd does when the entries expire."""
        self._leaving.set()
        self._caller.interrupt()
        if self._thread.ident is not None:
            self._thread.join(2 * self._settings.operation_timeout_seconds)
        self._caller.resume()
        if self._token and not self._lost:
            try:
                self._remove_entry(monotonic() + min(_LEAVE_SECONDS, self._settings.operation_timeout_seconds))
            except (QuorateError, RefusedError, InterruptedCallError):
                pass
        self._caller.close()

    def _remove_entry(self, deadline: float) -> None:
        token = self._token
        self._caller.delete(f"{self._root}/{token}/members/{self._name}", deadline)
        if not self._is_empty(token, deadline):
            return
        current, index = self._read_current(deadline)
        if current is not None and current.removeprefix(_CLOSING) == token:
            self._dissolve(current, index, deadline)
        self._remove_empty_directories(deadline)

    def _remove_empty_directories(self, deadline: float) -> None:
        """Remove the job's directory, and with the last job the prefix's, if nothing is in them."""
        path = self._root
        while path:
            self._caller.delete(path, deadline, dir=True)
            path = path.rpartition("/")[0]

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
        if monotonic() - self._directory_refreshed > 0.9 * self._settings.key_ttl_seconds:
            self.verify()

    def verify(self) -> None:
        """Look whether etcd still has the job, as it may not after it was away.  Raises as :meth:`check` does."""
        with self._verifying:
            if self._lost:
                raise StoreLostError(self._lost)
            deadline = monotonic() + self._settings.operation_timeout_seconds
            try:
                self._refresh_entry(deadline)
                age = monotonic() - self._directory_refreshed
                if age > self._settings.key_ttl_seconds / 3:
                    self._refresh_directory(deadline, create=False)
            except RefusedError as refused:
                if refused.code != NOT_FOUND:
                    raise unexpected(refused, self._root) from refused
                self._lose(deadline)

    def _refresh_entry(self, deadline: float) -> None:
        started = monotonic()
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
        self._member_refreshed = started

    def _lose(self, deadline: float) -> NoReturn:
        try:
            # What this node wrote before it noticed would stay for ever.
            self._remove_empty_directories(deadline)
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
