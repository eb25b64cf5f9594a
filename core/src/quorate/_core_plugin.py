"""The core's own answers to the hooks: an ordinary plugin, asked last.

What does not live here: the restart policy (:mod:`quorate.policy`) and the order of nodes (:mod:`quorate.rendezvous`).
"""

from __future__ import annotations

from collections.abc import Sequence

from .hookspecs import hookimpl
from .policy import default_cause, default_restart
from .records import Cause, FailureRecord, NodeRecord, RendezvousWaiting, RestartBudget, RestartDecision, RoundSummary
from .rendezvous import order_nodes


@hookimpl(trylast=True)
def quorate_decide_waiting(waiting: RendezvousWaiting) -> bool:
    """Wait until the timeout."""
    return True


@hookimpl(trylast=True)
def quorate_decide_ranks(nodes: Sequence[NodeRecord], previous: Sequence[str]) -> Sequence[str]:
    """Keep group ranks where they can be kept."""
    return order_nodes(nodes, previous)


@hookimpl(trylast=True)
def quorate_decide_rescale(summary: RoundSummary, waiting: int) -> bool:
    """Form a new round as soon as a node waits that fits in."""
    return waiting > 0 and summary.group_world_size < summary.max_nodes


@hookimpl(trylast=True)
def quorate_decide_cause(failure: FailureRecord) -> Cause:
    """Go by the exit code and the recorded error."""
    return default_cause(failure)


@hookimpl(trylast=True)
def quorate_decide_restart(failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
    """Restart while the budget lasts."""
    return default_restart(failure, budget)
