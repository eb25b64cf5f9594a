"""The leases of etcd's API v3: granting them, keeping them alive, revoking them.

Each node has two.  The member's lease ends soon after its agent died.  The job's lease holds all keys of the job; all
members keep it alive.  What does not live here: the thread that does so (:mod:`quorate_rendezvous_etcd._keeper`), and
what a lease that has ended means (:mod:`.member`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import final

from .answers import Refused, RefusedError
from .client import Client

LARGEST_LEASE_ID = (1 << 63) - 1


def new_lease_id() -> int:
    """Return an id of our own choice, so that granting it twice grants it once."""
    return int.from_bytes(os.urandom(8), "big") >> 1 or 1


@final
class Leases:
    """Grants, refreshes and revokes leases through ``client``.

    Deadlines are in monotonic seconds.  Every method raises what :meth:`Client.call` raises.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def grant(self, lease: int, ttl_seconds: int, deadline: float) -> None:
        """Begin ``lease``, which ends ``ttl_seconds`` after it was last kept alive."""
        request = self._client.messages.LeaseGrantRequest(ID=lease, TTL=ttl_seconds)
        try:
            self._client.call("LeaseGrant", request, deadline)
        except RefusedError as error:
            if error.kind is not Refused.LEASE_EXISTS:  # an earlier attempt was applied
                raise

    def keep_alive(self, lease: int, deadline: float) -> bool:
        """Refresh ``lease``; return whether it still exists."""
        request = self._client.messages.LeaseKeepAliveRequest(ID=lease)
        try:
            return int(self._client.call("LeaseKeepAlive", request, deadline).TTL) > 0
        except RefusedError as error:
            if error.kind is not Refused.LEASE_GONE:
                raise
            return False

    def revoke(self, lease: int, deadline: float) -> None:
        """End ``lease``; etcd removes its keys."""
        with suppress(RefusedError):  # it has ended already
            self._client.call("LeaseRevoke", self._client.messages.LeaseRevokeRequest(ID=lease), deadline)
