"""Membership in a job over API v3: joining an incarnation of it, staying, leaving.

A node that opens the store joins the incarnation if that has a live member, and replaces it otherwise, so a run id can
be used again.  The last member that leaves in order removes all keys.  The leases remove what was killed.

Every write compares the revision of the key ``job`` that it belongs to.  A node that was away while its job was
replaced or removed gets StoreLostError, and cannot write into the next job.

What does not live here: the keys (:mod:`.job`), the leases (:mod:`.lease`), the store's operations (:mod:`.store`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError

from .._keeper import LeaseKeeper
from .._settings import Settings
from .answers import Refused, RefusedError
from .client import Client
from .job import Incarnation, root_of
from .last_word import Departed
from .lease import Leases, new_lease_id
from .requests import Requests

#: The value of a member's key before its first counted addition.
_FIRST_MARKER = b"0"
_REMOVED = "its keys were removed or have expired"
_REPLACED = "another job has taken its place"


@final
class Membership:
    """This node's membership in the job that ``settings`` name.  Call :meth:`join` first.

    ``keys`` is what all keys of the store start with, ``member`` this node's own key.  ``lease`` and ``member_lease``
    are the leases that they are written with.  ``on_lost`` is called, on any thread, when the job is gone.  ``lost``
    says why it is gone.
    """

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings, self._client = settings, client
        self.requests, self._leases = Requests(client.messages), Leases(client)
        self._root = root_of(settings)
        self._job = f"{self._root}job".encode()
        self._name = os.urandom(8).hex()
        self._incarnation = Incarnation("", 0, (0, 0))
        self._revision = 0
        self.member_lease = new_lease_id()
        self.lost = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._renewing = threading.Lock()
        self._job_refresh_at = 0.0
        interval = settings.member_ttl_seconds / 3
        self._keeper = LeaseKeeper("quorate-etcd-lease", interval, self._refresh_leases, self.set_lost)

    @property
    def lease(self) -> int:
        """The job's lease."""
        return self._incarnation.lease

    @property
    def keys(self) -> bytes:
        """What all keys of the store start with."""
        return self._incarnation.keys(self._root)

    @property
    def member(self) -> bytes:
        """This node's own key."""
        return self._incarnation.members(self._root) + self._name.encode()

    def departed(self) -> Departed:
        """Return what another process needs to write for this member once it is gone."""
        return Departed(self._job, self._revision, self.keys, self.lease, self.member_lease)

    # --- joining ------------------------------------------------------------------------------------------------------

    def join(self, deadline: float) -> None:
        """Become a member by ``deadline`` (monotonic seconds), and stay one until :meth:`leave`.

        Raises:
            StoreUnavailableError: no answer in time.
            StoreCorruptError: this version of this backend has not written what is stored there.
        """
        while not self._try_to_join(deadline):
            if monotonic() >= deadline:
                raise StoreUnavailableError(
                    f"the job {self._settings.run_id!r} in etcd is repeatedly created and deleted"
                )
        self._job_refresh_at = monotonic()
        self._keeper.start()

    def _try_to_join(self, deadline: float) -> bool:
        """Join the incarnation, or replace it; return ``False`` if it changed meanwhile."""
        requests = self.requests
        self._leases.grant(self.member_lease, self._settings.member_ttl_seconds, deadline)
        found = self._run([], [requests.get(self._job)], deadline).responses[0].response_range.kvs
        if not found:
            return self._replace(0, None, deadline)
        revision = found[0].mod_revision
        incarnation = Incarnation.decode(found[0].value, self._job.decode())
        answer = self._run([], [requests.first_key(incarnation.members(self._root))], deadline)
        if not answer.responses[0].response_range.kvs:
            return self._replace(revision, incarnation, deadline)
        self._incarnation, self._revision = incarnation, revision
        return self._write_if([requests.is_at(self._job, revision)], [self._put_member()], deadline) is not None

    def _write_if(self, compare: Sequence[Any], success: Sequence[Any], deadline: float) -> Any:
        """Return the answer to a transaction; ``None`` if a comparison fails or a lease has ended."""
        try:
            answer = self._run(compare, success, deadline)
        except RefusedError:
            return None
        return answer if answer.succeeded else None

    def _replace(self, revision: int, old: Incarnation | None, deadline: float) -> bool:
        """Begin the first incarnation, or a new one in the place of one that has no members."""
        requests, new = self.requests, Incarnation.new(self._settings)
        self._leases.grant(new.lease, self._settings.key_ttl_seconds, deadline)
        compare = [requests.is_at(self._job, revision)]
        if old is not None:
            compare.append(requests.is_empty(old.members(self._root)))
        self._incarnation, value = new, new.encode()
        answer = self._write_if(compare, [requests.put(self._job, value, new.lease), self._put_member()], deadline)
        if answer is not None:
            self._revision = answer.header.revision
        else:
            # Another node was faster, or an earlier attempt of this very request was applied.
            found = self._run([], [requests.get(self._job)], deadline).responses[0].response_range.kvs
            if not found or found[0].value != value:
                self._leases.revoke(new.lease, deadline)
                return False
            self._revision = found[0].mod_revision
        if old is not None:
            self._leases.revoke(old.lease, deadline)  # removes the old incarnation's keys
        return True

    def _put_member(self) -> Any:
        return self.requests.put(self.member, _FIRST_MARKER, self.member_lease)

    # --- staying ------------------------------------------------------------------------------------------------------

    def run(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any], deadline: float) -> Any:
        """Run a transaction within this incarnation; return the answer.

        The answer to a failed comparison begins with the response to one operation that is not in ``failure``.

        Raises:
            StoreLostError: this incarnation is gone.
            StoreUnavailableError: no answer by ``deadline`` (monotonic seconds).
        """
        requests = self.requests
        fence = requests.is_at(self._job, self._revision)
        look = requests.get(self._job, without_value=True)
        while True:
            if self.lost:
                raise StoreLostError(self.lost)
            try:
                answer = self._run([fence, *compare], success, deadline, [look, *failure])
            except RefusedError as error:
                if error.kind is not Refused.LEASE_GONE:
                    raise
                if monotonic() >= deadline:
                    raise StoreUnavailableError("the leases of this node in etcd end as soon as they begin") from None
                self.renew(deadline)
                continue
            if not answer.succeeded:
                found = answer.responses[0].response_range.kvs
                if not found or found[0].mod_revision != self._revision:
                    self._lose(_REPLACED if found else _REMOVED)
            return answer

    def renew(self, deadline: float) -> None:
        """Make sure that both leases and this member's key exist.

        Raises:
            StoreLostError: the incarnation's lease is gone, and all its keys with it.
            StoreUnavailableError: no answer by ``deadline`` (monotonic seconds).
        """
        with self._renewing:
            if self.lost:
                raise StoreLostError(self.lost)
            if not self._leases.keep_alive(self.lease, deadline):
                self._lose(_REMOVED)
            if not self._leases.keep_alive(self.member_lease, deadline):
                # This node was away for longer than its lease, and the job was not.
                self._leases.grant(self.member_lease, self._settings.member_ttl_seconds, deadline)
        # Outside the lock, which ``run`` may need.  A key that exists is left alone: it may hold a marker.
        self.run([self.requests.is_absent(self.member)], [self._put_member()], [], deadline)

    def _refresh_leases(self) -> None:
        """Keep both leases alive; a thread of its own calls this."""
        settings = self._settings
        # Shorter than the lease, so that a retry is in time.
        deadline = monotonic() + min(settings.operation_timeout_seconds, settings.member_ttl_seconds / 3)
        if not self._leases.keep_alive(self.member_lease, deadline):
            self.renew(deadline)
        if monotonic() >= self._job_refresh_at:
            if not self._leases.keep_alive(self.lease, deadline):
                self._lose(_REMOVED)
            # All members do this, and one would be enough.
            self._job_refresh_at = monotonic() + settings.key_ttl_seconds / 6

    def _lose(self, how: str) -> None:
        self.set_lost(
            f"the job {self._settings.run_id!r} is gone from etcd at {self._settings.where}: {how}. This happens to a "
            f"node that was away for longer than etcd remembers (key_ttl={self._settings.key_ttl_seconds} s), or when "
            "two jobs use one --rdzv-id"
        )
        raise StoreLostError(self.lost)

    def set_lost(self, sentence: str) -> None:
        """Have every later operation raise StoreLostError with ``sentence``, and a wait that is under way end."""
        self.lost = sentence
        self.on_lost()

    # --- leaving ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Stop being a member; the last one removes all keys of the job.  Returns within ``close_timeout``."""
        self._keeper.stop()
        # A refresh that is under way could write this member's key again.
        self._keeper.join(self._settings.leave_seconds / 4)
        with suppress(QuorateError):  # etcd is away, or the job is gone: the leases end by themselves
            self._remove(monotonic() + self._settings.leave_seconds)

    def abandon(self) -> None:
        """Stop keeping the leases alive, without revoking them."""
        self._keeper.stop()

    def join_thread(self) -> None:
        """Wait for the thread that keeps the leases; only after the client is closed."""
        self._keeper.join(self._settings.leave_seconds)

    def _remove(self, deadline: float) -> None:
        requests, members = self.requests, self._incarnation.members(self._root)
        fence = requests.is_at(self._job, self._revision)
        self._leases.revoke(self.member_lease, deadline)
        answer = self._run([fence], [requests.first_key(members)], deadline)
        is_last = answer.succeeded and not answer.responses[0].response_range.kvs
        if not is_last or self._settings.keep:
            return
        # The job's key first: a node that comes now begins a new incarnation.
        if self._run([fence, requests.is_empty(members)], [requests.delete(self._job)], deadline).succeeded:
            self._leases.revoke(self.lease, deadline)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _run(self, compare: Sequence[Any], success: Sequence[Any], deadline: float, failure: Sequence[Any] = ()) -> Any:
        return self._client.transact(self.requests.transaction(compare, success, failure), deadline)
