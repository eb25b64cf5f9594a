"""Writes over API v3 for a node whose agent was killed, and ends its membership; called in its guardian.

What does not live here: when something is written (the core), and the store (:mod:`.store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from attrs import evolve, frozen

from quorate.clock import monotonic
from quorate.rendezvous import Write

from .._settings import Settings
from .client import Client
from .format import pack_created, pack_put
from .lease import Leases
from .requests import Requests

_SECONDS = 3.0


@final
@frozen
class Departed:
    """The incarnation that a node was a member of: its key and revision, its keys' prefix, and both leases."""

    job: bytes
    revision: int
    keys: bytes
    lease: int
    member_lease: int


def write_last_words(settings: Settings, departed: Departed, writes: Sequence[Write]) -> None:
    """Make ``writes`` within the incarnation, and end the member's lease.  Raises what :meth:`Client.call` raises."""
    client = Client(evolve(settings, operation_timeout_seconds=_SECONDS))
    requests = Requests(client.messages)
    try:
        for write in writes:
            name = departed.keys + write.key.encode()
            value = pack_created(write.value) if write.once else pack_put(write.value)
            compare = [requests.is_at(departed.job, departed.revision)]
            compare += [requests.is_absent(name)] if write.once else []
            request = requests.transaction(compare, [requests.put(name, value, departed.lease)])
            client.transact(request, monotonic() + _SECONDS)
        Leases(client).revoke(departed.member_lease, monotonic() + _SECONDS)
    finally:
        client.close()
