"""What a node that hosts the rendezvous store owes the others when it goes: the store ends with it.

What does not live here: carrying it out (``_handler``, ``_driver``), and which stores have a host (``_store``).
"""

from __future__ import annotations

from attrs import evolve

from ..errors import FailureKind
from ..records import Assignment, NodeRecord, RoundEnd, Verdict
from ._protocol import Output, Phase, RendezvousFailed
from ._state import State
from ._store import Store, ends_with_host

#: A host whose node left early stays this many ``linger_timeout``: the other nodes' workers still run, and will
#: report that they are done.
_LINGER_FACTOR = 12


def end_with_store(end: RoundEnd, store: Store | None, assignment: Assignment | None) -> RoundEnd:
    """Return how a round ends, which the others would follow up with a store that ends now."""
    if store is None or assignment is None or assignment.group_world_size == 1 or end.verdict.is_terminal:
        return end
    if assignment.group_rank not in end.lost_ranks or not ends_with_host(store):
        return end  # this node stays, or the store does
    verdict = Verdict.STOPPED if end.failure is None else Verdict.FAILED
    reason = f"{end.reason}; it hosts the rendezvous store, which ends with it"
    return evolve(end, verdict=verdict, reason=reason, lost=(), lost_ranks=())


def why_no_round(output: Output, store: Store | None, node: NodeRecord) -> str:
    """Return what the nodes in line should learn from a host that gives up; ``""`` if it need not tell them anything.

    They would only see the store end, and take that for the reason.
    """
    if not isinstance(output, RendezvousFailed) or output.kind is not FailureKind.TIMEOUT:
        return ""
    if store is None or not ends_with_host(store):
        return ""
    return f"{output.problem} ({node.name}, which hosts the rendezvous store, has given up)"


def linger_seconds(state: State, final: Output | None, linger_timeout: float) -> float:
    """Return for how long the host of a store keeps it for the other nodes, which may still read it."""
    gave_up = isinstance(final, RendezvousFailed) and final.kind is FailureKind.TIMEOUT
    if state.phase is Phase.CLOSED or gave_up:
        return linger_timeout
    return _LINGER_FACTOR * linger_timeout if state.phase is Phase.LEFT and state.is_done else 0.0
