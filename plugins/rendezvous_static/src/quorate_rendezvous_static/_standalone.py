"""The backend ``standalone``: a job of one node, which agrees with no other.

What does not live here: anything with a server or a network; the only socket is the reserved ``MASTER_PORT``.
"""

from __future__ import annotations

import threading
from typing import final

from quorate.clock import monotonic, seconds_until
from quorate.errors import RendezvousClosedError, UsageError
from quorate.records import Cause, NodeRecord, RoundEnd, Verdict, evolve
from quorate.rendezvous import (
    PortReservation,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    assign_ranks,
    reserve_master_port,
)


def check_standalone(params: RendezvousParameters) -> None:
    """Refuse anything but one node.  Raises UsageError."""
    if (params.min_nodes, params.max_nodes) != (1, 1):
        bounds = f"{params.min_nodes}:{params.max_nodes}"
        raise UsageError(
            f"the rendezvous backend 'standalone' runs a job on one node, not on --nnodes={bounds}; set --nnodes=1, "
            "or choose another --rdzv-backend instead of --standalone"
        )


@final
class StandaloneHandler(RendezvousHandler):
    """Starts a round as soon as it is asked for one.  Every method may be called from any thread.

    Raises:
        UsageError: the job is not for exactly one node.
    """

    tells_every_change = True

    def __init__(self, params: RendezvousParameters) -> None:
        check_standalone(params)
        self._run_id = params.run_id
        self._address = params.local_addr or "127.0.0.1"
        self._port_range = params.get("master_port_range")
        self._changed = threading.Condition()
        self._port = PortReservation()
        self._node: NodeRecord | None = None
        self._left = self._is_closed_here = False
        self._begin()

    def _begin(self) -> None:
        self._round_number = -1  # rounds count from 0, as everywhere
        self._restart_count = 0
        self._end: RoundEnd | None = None  # of the current round
        self._closed: RoundEnd | None = None  # of the job
        self._not_before = 0.0

    def get_backend(self) -> str:
        return "standalone"

    def get_run_id(self) -> str:
        return self._run_id

    def prepare(self, node: NodeRecord) -> None:
        """Take this node's record.  Once the job has ended, another one of its name begins, if it was not closed."""
        with self._changed:
            self._node = node
            if self._closed is not None and not self._is_closed_here:
                self._begin()

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the next round; at once, unless the last one ended with a delay.

        Raises:
            RendezvousClosedError: the job has ended, or this handler was shut down.
            RendezvousStateError: no port of ``master_port_range`` can be taken.
        """
        with self._changed:
            while True:
                self._check_open()
                if self._not_before <= monotonic():
                    break
                self._changed.wait(seconds_until(self._not_before))
            self._round_number += 1
            self._end = None
            port = reserve_master_port(self._port, self._address, self._port_range)
            self._port.activate()  # this node's worker is the next to use it
            assignment = None
            if self._node is not None:
                node = evolve(self._node, address=self._address, port=port, shares_store=False)
                ranks = assign_ranks(
                    [node], [node.node_id], round_number=self._round_number, restart_count=self._restart_count
                )
                assignment = ranks[node.node_id]
            return RendezvousInfo(None, 0, 1, RendezvousStoreInfo(self._address, port), assignment)

    def _check_open(self) -> None:
        end = self._closed
        if end is not None:
            raise RendezvousClosedError(end.reason, succeeded=end.verdict is Verdict.SUCCEEDED)
        if self._left:
            raise RendezvousClosedError("this node has left the job")

    def is_closed(self) -> bool:
        with self._changed:
            return self._closed is not None

    def set_closed(self) -> None:
        """End the job; unlike :meth:`end_round` also between two rounds."""
        with self._changed:
            self._is_closed_here = True
            end = self._own_end(Cause.STOPPED, Verdict.STOPPED, "the job was closed")
            self.end_round(end)
            if self._closed is None:
                self._closed = end
                self._changed.notify_all()

    def num_nodes_waiting(self) -> int:
        return 0

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        deadline = monotonic() + timeout
        with self._changed:
            while self._end is None and not self._left:
                if deadline <= monotonic():
                    return None
                self._changed.wait(seconds_until(deadline))
            return self._end

    def end_round(self, end: RoundEnd) -> None:
        """End the current round; only the first end counts, and one of an earlier round comes too late."""
        with self._changed:
            if self._closed is not None or self._end is not None or end.round_number < self._round_number:
                return
            self._end = end
            self._closed = end if end.verdict.is_terminal else None
            self._restart_count = end.restart_count
            self._not_before = monotonic() + end.delay_seconds
            self._changed.notify_all()

    def report_done(self) -> None:
        """On the only node, the end of its workers is the end of the job."""
        with self._changed:
            reason = "all workers of the only node have succeeded"
            self.end_round(self._own_end(Cause.SUCCEEDED, Verdict.SUCCEEDED, reason))

    def _own_end(self, cause: Cause, verdict: Verdict, reason: str) -> RoundEnd:
        node = self._node
        return RoundEnd(
            round_number=self._round_number,
            cause=cause,
            verdict=verdict,
            reason=reason,
            node_id=node.node_id if node is not None else "",
            host=node.host if node is not None else "",
            restart_count=self._restart_count,
        )

    def shutdown(self) -> bool:
        with self._changed:
            self._left = True
            self._port.release()
            self._changed.notify_all()
        return True
