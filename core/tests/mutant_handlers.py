"""A handler of its own (tier 2) that keeps every law of the conformance kit, and handlers that are each wrong.

What does not live here: which law has to catch which (``mutants``).
"""

from __future__ import annotations

from quorate.clock import sleep
from quorate.errors import RendezvousClosedError, RendezvousConnectionError
from quorate.records import NodeRecord, RoundEnd
from quorate.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    StoreRendezvousHandler,
    assign_ranks,
)


class HonestHandler(RendezvousHandler):
    """A handler of its own (tier 2) that keeps every law, since it hands everything on to the core's."""

    def __init__(self, inner: StoreRendezvousHandler) -> None:
        self.inner = inner

    @staticmethod
    def spoil(parameters: RendezvousParameters) -> None:
        """Change the parameters."""

    def get_backend(self) -> str:
        return self.inner.get_backend()

    def next_rendezvous(self) -> RendezvousInfo:
        return self.inner.next_rendezvous()

    def is_closed(self) -> bool:
        return self.inner.is_closed()

    def set_closed(self) -> None:
        self.inner.set_closed()

    def num_nodes_waiting(self) -> int:
        return self.inner.num_nodes_waiting()

    def get_run_id(self) -> str:
        return self.inner.get_run_id()

    def shutdown(self) -> bool:
        return self.inner.shutdown()

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        return self.inner.wait_for_change(timeout)

    def prepare(self, node: NodeRecord) -> None:
        self.inner.prepare(node)


class CountsFromOne(HonestHandler):
    def next_rendezvous(self) -> RendezvousInfo:
        info = super().next_rendezvous()
        return RendezvousInfo(info.store, info.rank + 1, info.world_size, info.bootstrap_store_info, info.assignment)


class IgnoresTheMinimum(HonestHandler):
    @staticmethod
    def spoil(parameters: RendezvousParameters) -> None:
        parameters.min_nodes = 1


class BlamesTheConnection(HonestHandler):
    def next_rendezvous(self) -> RendezvousInfo:
        try:
            return super().next_rendezvous()
        except Exception as error:
            raise RendezvousConnectionError(str(error)) from None


class IgnoresTheMaximum(HonestHandler):
    @staticmethod
    def spoil(parameters: RendezvousParameters) -> None:
        parameters.max_nodes += 1


class KeepsNewcomersWaiting(HonestHandler):
    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        sleep(timeout)
        return None

    def num_nodes_waiting(self) -> int:
        return 0


class ForgetsTheReason(HonestHandler):
    def next_rendezvous(self) -> RendezvousInfo:
        try:
            return super().next_rendezvous()
        except RendezvousClosedError:
            raise RendezvousClosedError(f"closed, says {id(self)}") from None


class RanksEveryoneAlike(HonestHandler):
    """Workers' ranks are those of a round of equals."""

    def next_rendezvous(self) -> RendezvousInfo:
        info = super().next_rendezvous()
        assignment = info.assignment
        assert assignment is not None
        nodes = [NodeRecord(f"{rank}", assignment.role, assignment.local_world_size) for rank in range(info.world_size)]
        order = [node.node_id for node in nodes]
        alike = assign_ranks(nodes, order, round_number=assignment.round_number, restart_count=0)[str(info.rank)]
        return RendezvousInfo(info.store, info.rank, info.world_size, info.bootstrap_store_info, alike)
