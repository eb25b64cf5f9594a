"""What is done for an agent that was killed, where it ran a member: its last words, and the end of its membership.

A guardian imports this, once on every node, so only what is needed is imported here.  What does not live here: the
words (the core), and how they are written (:mod:`quorate_rendezvous_etcd._v3.last_word`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from attrs import frozen

from quorate.clock import monotonic, sleep
from quorate.errors import QuorateError
from quorate.rendezvous import LastWordWriter, Write

from .cluster import Cluster
from .peers import Identity, Peers

#: How long the guardian tries to have the member removed.
_LEAVE_SECONDS = 5.0
_LEAVE_PAUSE_SECONDS = 0.1
#: How long the cluster is not changed after an agent was killed, so that the other nodes can form their round.
_ROUND_SECONDS = 0.5


@final
@frozen
class LastWord:
    """Writes by ``write``, and has the cluster go on without its member ``identity``, which ends soon."""

    write: LastWordWriter
    identity: Identity

    def __call__(self, writes: Sequence[Write]) -> None:
        deadline = monotonic() + _LEAVE_SECONDS
        cluster = Cluster(self.identity, Peers(*self.identity))
        try:
            self.write(writes)
        finally:
            # First the others form their round: a change of the members, or of the leader, would be in its way.
            sleep(_ROUND_SECONDS)
            is_done = False
            # An election may be under way, for example after the member before this one has left.
            while not is_done and monotonic() < deadline:
                try:
                    is_done = cluster.leave()
                except QuorateError:
                    sleep(_LEAVE_PAUSE_SECONDS)
            cluster.close()
