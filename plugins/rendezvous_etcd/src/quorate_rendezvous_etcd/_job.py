"""Membership in a job: which incarnation of a run id this node belongs to, who keeps its keys, and who removes them.

In etcd, below ``<prefix>/<run id>/``, are::

    job                     the incarnation: its token, its lease, its bounds; written once, then only removed
    <token>/member/<name>   one key for each member, on a lease of its own that ends soon after its agent died
    <token>/key/<key>       the keys of the store

All but the members' keys are on the incarnation's lease, which every member keeps alive: it ends long after the last
of them was killed, and takes everything with it.  The last member that leaves in order removes everything at once.

Who opens the store joins the incarnation if that has a live member, and replaces it if not: a run id can be used again.
Every write names the revision of ``job`` that it belongs to, so a node that was away while its job was replaced or
removed is told so, and never writes into the next one.  What does not live here: the store's operations
(:mod:`._store`).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import (
    QuorateError,
    RendezvousStateError,
    StoreCorruptError,
    StoreLostError,
    StoreUnavailableError,
)

from ._answers import Refused, RefusedError
from ._requests import Requests
from ._settings import Settings, refuse_other_bounds
from ._transport import Transport

__all__ = ["FIRST_MARKER", "Membership"]

_VERSION = 1
#: What a member's key holds before its first counted addition.
FIRST_MARKER = b"0"
_RETRY_SECONDS = 1.0
# How long a leaving member tries to say so; leases do the same a little later.


@final
class Membership:
    """This node's membership in the job that ``settings`` name.  :meth:`join` first; then the attributes are valid.

    ``keys`` is what all keys of the store start with, ``member`` this node's own key; ``lease`` and ``member_lease``
    are the leases that they are written with.
    """

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self._settings, self._transport = settings, transport
        self.requests = Requests(transport.messages)
        # A run id may hold slashes; escaped, no job's keys begin with another's.
        run_id = settings.run_id.replace("%", "%25").replace("/", "%2F")
        self._root = f"{settings.prefix}/{run_id}/"
        self._job = f"{self._root}job".encode()
        self._name = os.urandom(8).hex()
        self._token = ""
        self._revision = 0
        self.keys = self.member = b""
        self.lease, self.member_lease = 0, _new_lease_id()
        self._lost = ""
        self._renewing = threading.Lock()
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    # --- joining ------------------------------------------------------------------------------------------------------

    def join(self, deadline: float) -> None:
        """Become a member by ``deadline`` (monotonic seconds), and stay one until :meth:`leave`.

        Raises:
            StoreUnavailableError: no answer in time.
            StoreCorruptError: what is there was not written by this version of this backend.
            RendezvousStateError: a job with other bounds is running under this run id.
        """
        while not self._try_to_join(deadline):
            if monotonic() >= deadline:
                raise StoreUnavailableError(f"the job {self._settings.run_id!r} in etcd comes and goes")
        self._keeper = threading.Thread(target=self._keep, name="quorate-etcd-lease", daemon=True)
        self._keeper.start()

    def _try_to_join(self, deadline: float) -> bool:
        """Join the incarnation, or replace it; ``False`` if it changed meanwhile."""
        requests = self.requests
        self._grant(self.member_lease, self._settings.member_ttl_seconds, deadline)
        found = self._run([], [requests.get(self._job)], deadline).responses[0].response_range.kvs
        if not found:
            return self._replace(0, "", 0, deadline)
        revision = found[0].mod_revision
        token, lease, bounds = self._decode(found[0].value)
        members = f"{self._root}{token}/member/".encode()
        answer = self._run([], [requests.first_key(members)], deadline)
        if not answer.responses[0].response_range.kvs:
            return self._replace(revision, token, lease, deadline)
        try:
            refuse_other_bounds(self._settings, bounds)
        except RendezvousStateError:
            self._revoke(self.member_lease, deadline)
            raise
        self._take(token, lease, revision)
        return self._enter([requests.is_at(self._job, revision)], [self._put_member()], deadline) is not None

    def _enter(self, compare: Sequence[Any], success: Sequence[Any], deadline: float) -> Any:
        """Write this member's key among others; ``None`` if that is not possible any more."""
        try:
            answer = self._run(compare, success, deadline)
        except RefusedError:
            return None  # a lease has ended before it was used
        return answer if answer.succeeded else None

    def _replace(self, revision: int, old_token: str, old_lease: int, deadline: float) -> bool:
        """Begin a new incarnation where there is none, or one that has lost all its members."""
        requests, token, lease = self.requests, os.urandom(8).hex(), _new_lease_id()
        self._grant(lease, self._settings.key_ttl_seconds, deadline)
        compare = [requests.is_at(self._job, revision)]
        if revision:
            compare.append(requests.is_empty(f"{self._root}{old_token}/member/".encode()))
        self._take(token, lease, 0)
        value = self._encode(token, lease)
        answer = self._enter(compare, [requests.put(self._job, value, lease), self._put_member()], deadline)
        if answer is not None:
            self._revision = answer.header.revision
        else:
            # Somebody else was faster, or else an earlier attempt of this very request has done it.
            found = self._run([], [requests.get(self._job)], deadline).responses[0].response_range.kvs
            if not found or found[0].value != value:
                self._revoke(lease, deadline)
                return False
            self._revision = found[0].mod_revision
        if old_lease:
            self._revoke(old_lease, deadline)  # takes the old incarnation's keys along
        return True

    def _take(self, token: str, lease: int, revision: int) -> None:
        self._token, self.lease, self._revision = token, lease, revision
        self.keys = f"{self._root}{token}/key/".encode()
        self.member = f"{self._root}{token}/member/{self._name}".encode()

    def _put_member(self) -> Any:
        return self.requests.put(self.member, FIRST_MARKER, self.member_lease)

    def _encode(self, token: str, lease: int) -> bytes:
        settings = self._settings
        return f"{_VERSION} {token} {lease:x} {settings.min_nodes} {settings.max_nodes}".encode()

    def _decode(self, value: bytes) -> tuple[str, int, tuple[int, int]]:
        words = value.decode("ascii", "replace").split(" ")
        if not words[0].isdecimal() or (words[0] == str(_VERSION) and len(words) != 5):
            raise StoreCorruptError(self._job.decode(), "it was not written by quorate")
        if words[0] != str(_VERSION):
            raise StoreCorruptError(self._job.decode(), f"it was written by a newer version ({words[0][:9]})")
        try:
            return words[1], int(words[2], 16), (int(words[3]), int(words[4]))
        except ValueError:
            raise StoreCorruptError(self._job.decode(), "it was not written by quorate") from None

    # --- being a member -----------------------------------------------------------------------------------------------

    def run(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any], deadline: float) -> Any:
        """Run a transaction within this incarnation; returns the answer.

        The answer to a failed comparison begins with one operation that is not in ``failure``.

        Raises:
            StoreLostError: this incarnation is gone.
            StoreUnavailableError: no answer by ``deadline`` (monotonic seconds).
        """
        requests = self.requests
        fence = requests.is_at(self._job, self._revision)
        look = requests.get(self._job, without_value=True)
        while True:
            if self._lost:
                raise StoreLostError(self._lost)
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
                    self._lose("another job has taken its place" if found else "its keys were removed or have expired")
            return answer

    def renew(self, deadline: float) -> None:
        """Make sure of both leases, and of this member's key.

        Raises:
            StoreLostError: the incarnation's lease is gone, and all its keys with it.
            StoreUnavailableError: no answer by ``deadline`` (monotonic seconds).
        """
        with self._renewing:
            if self._lost:
                raise StoreLostError(self._lost)
            if self._keep_alive(self.lease, deadline) <= 0:
                self._lose("its keys were removed or have expired")
            if self._keep_alive(self.member_lease, deadline) <= 0:
                # This node was away for longer than its lease, and the job was not.
                self._grant(self.member_lease, self._settings.member_ttl_seconds, deadline)
        # Outside the lock, which ``run`` may need.  A key that is there is left alone: it may hold a marker.
        self.run([self.requests.is_absent(self.member)], [self._put_member()], [], deadline)

    def _lose(self, how: str) -> None:
        self._lost = (
            f"the job {self._settings.run_id!r} is gone from etcd at {self._settings.where}: {how}. This happens to a "
            f"node that was away for longer than etcd remembers (key_ttl={self._settings.key_ttl_seconds} s), or when "
            "two jobs use one --rdzv-id"
        )
        raise StoreLostError(self._lost)

    def _keep(self) -> None:
        """Keep both leases alive, on a thread of its own."""
        settings = self._settings
        next_job = monotonic()
        pause = settings.member_ttl_seconds / 3
        while not self._stopping.wait(pause * random.uniform(0.8, 1.0)):
            # Shorter than the lease, so that a retry still comes in time.
            deadline = monotonic() + min(settings.operation_timeout_seconds, settings.member_ttl_seconds / 3)
            pause = settings.member_ttl_seconds / 3
            try:
                if self._keep_alive(self.member_lease, deadline) <= 0:
                    self.renew(deadline)
                if monotonic() >= next_job:
                    if self._keep_alive(self.lease, deadline) <= 0:
                        self._lose("its keys were removed or have expired")
                    # All members do this: one in time would be enough.
                    next_job = monotonic() + settings.key_ttl_seconds / 6
            except StoreLostError:
                return  # the next operation says so
            except StoreUnavailableError:
                pause = min(_RETRY_SECONDS, pause)
            except (QuorateError, RefusedError):
                pass  # refused for good, such as by a change of permissions: the next operation says so

    # --- leaving ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Stop being a member; the last one removes all keys of the job.  Returns within ``close_timeout``, always."""
        self._stopping.set()
        if self._keeper is None:
            return
        # A refresh that is under way could bring this member's key back.
        self._keeper.join(self._settings.leave_seconds / 4)
        try:
            self._say_goodbye(monotonic() + self._settings.leave_seconds)
        except (QuorateError, RefusedError):
            pass  # etcd is away, or the job is gone: its leases end by themselves

    def join_thread(self) -> None:
        """Wait for the thread that keeps the leases alive; only after the transport is closed."""
        if self._keeper is not None:
            self._keeper.join(self._settings.leave_seconds)

    def _say_goodbye(self, deadline: float) -> None:
        requests = self.requests
        members = f"{self._root}{self._token}/member/".encode()
        fence = requests.is_at(self._job, self._revision)
        self._revoke(self.member_lease, deadline)
        answer = self._run([fence], [requests.first_key(members)], deadline)
        is_last = answer.succeeded and not answer.responses[0].response_range.kvs
        if not is_last or self._settings.keep:
            return
        # The job's key first: who comes now begins anew, and cannot join what is about to go.
        if self._run([fence, requests.is_empty(members)], [requests.delete(self._job)], deadline).succeeded:
            self._revoke(self.lease, deadline)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _run(self, compare: Sequence[Any], success: Sequence[Any], deadline: float, failure: Sequence[Any] = ()) -> Any:
        return self._transport.call("Txn", self.requests.transaction(compare, success, failure), deadline)

    def _grant(self, lease: int, seconds: int, deadline: float) -> None:
        request = self._transport.messages.LeaseGrantRequest(ID=lease, TTL=seconds)
        try:
            self._transport.call("LeaseGrant", request, deadline)
        except RefusedError as error:
            if error.kind is not Refused.LEASE_EXISTS:  # an earlier attempt was applied after all
                raise

    def _revoke(self, lease: int, deadline: float) -> None:
        try:
            self._transport.call("LeaseRevoke", self._transport.messages.LeaseRevokeRequest(ID=lease), deadline)
        except RefusedError:
            pass  # it is gone already

    def _keep_alive(self, lease: int, deadline: float) -> int:
        """Refresh a lease; returns its remaining seconds, 0 or less if it is gone."""
        request = self._transport.messages.LeaseKeepAliveRequest(ID=lease)
        return int(self._transport.call("LeaseKeepAlive", request, deadline).TTL)


def _new_lease_id() -> int:
    """Return an id of our own choice, so that granting it twice grants it once."""
    return int.from_bytes(os.urandom(8), "big") >> 1 or 1
