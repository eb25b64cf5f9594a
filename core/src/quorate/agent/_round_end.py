"""The budget that an agent gives to its restart policy, and the ends of rounds that it records.  Pure.

What does not live here: when it does so (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

from attrs import evolve

from .._bounded import LONGEST_DELAY_SECONDS
from ..records import Cause, FailureRecord, RestartBudget, RestartDecision, RoundEnd, Verdict
from . import _protocol as protocol
from ._state import State


def budget_of(state: State) -> RestartBudget:
    """Return the restart budget; rounds that ended for another world neither count nor interrupt a row of repeats."""
    assignment = state.assignment
    assert assignment is not None
    restarts = [end for end in state.history if end.verdict is Verdict.RESTART]
    last = restarts[-1] if restarts else None
    repeats = 0
    for end in reversed(restarts):
        if last is None or (end.cause, end.rank) != (last.cause, last.rank):
            break
        repeats += 1
    return RestartBudget(
        assignment.restart_count, state.max_restarts, last.cause if last else None, last.rank if last else None, repeats
    )


def end_by_failure(state: State, failure: FailureRecord, decision: RestartDecision) -> RoundEnd:
    """Return the end of a round in which a worker of this node failed and the policy decided."""
    assignment = state.assignment
    assert assignment is not None
    goes_on = not decision.verdict.is_terminal
    summary = failure.message.strip().splitlines()[0] if failure.message.strip() else ""
    where = f" on {failure.host}" if failure.host else ""
    did = "hangs" if failure.cause is Cause.HANG else "failed"
    reason = f"rank {failure.rank} (local rank {failure.local_rank}){where} {did}: {summary}"
    if decision.reason:
        reason += f"; {decision.reason}"
    if decision.delay_seconds > 0 and goes_on:
        reason += f", after a pause of {decision.delay_seconds:.1f} s"
    excluded = decision.exclude_node and goes_on
    if excluded:
        reason += "; its node is excluded"
    return RoundEnd(
        assignment.round_number,
        failure.cause,
        decision.verdict,
        reason,
        node_id=assignment.node_id,
        host=failure.host,
        rank=failure.rank,
        restart_count=assignment.restart_count + (1 if decision.verdict is Verdict.RESTART else 0),
        delay_seconds=decision.delay_seconds,
        lost=(assignment.node_id,) if excluded else (),
        lost_ranks=(assignment.group_rank,) if excluded else (),
        failure=failure,
        is_final=decision.is_final and not goes_on,
    )


def end_by_departure(state: State, cause: Cause, reason: str) -> RoundEnd:
    """Return the end of a round that this node leaves; the others form the next one, and no restart is counted."""
    assignment = state.assignment
    assert assignment is not None
    return RoundEnd(
        assignment.round_number,
        cause,
        Verdict.RESCALE,
        reason,
        node_id=assignment.node_id,
        host=state.settings.host,
        restart_count=assignment.restart_count,
        lost=(assignment.node_id,),
        lost_ranks=(assignment.group_rank,),
    )


def end_by_cut_off(state: State, problem: str) -> RoundEnd:
    """Return the end of a round whose workers this node has killed; the others wait for it, at no cost."""
    assignment = state.assignment
    assert assignment is not None
    host = f" ({state.settings.host})" if state.settings.host else ""
    return RoundEnd(
        assignment.round_number,
        Cause.NODE_LOST,
        Verdict.RESCALE,
        f"group rank {assignment.group_rank}{host} was cut off and has killed its workers: {problem}",
        node_id=assignment.node_id,
        host=state.settings.host,
        restart_count=assignment.restart_count,
    )


def end_by_preemption(state: State, warning: protocol.PreemptionWarned) -> RoundEnd:
    """Return the end of a round of which the scheduler takes this node, or all; the others go on if they are enough."""
    assignment = state.assignment
    assert assignment is not None
    goes_on = not warning.whole_job and assignment.group_world_size - 1 >= max(1, warning.min_nodes)
    grace = state.settings.grace.preemption if warning.grace_seconds is None else warning.grace_seconds
    departure = end_by_departure(state, Cause.PREEMPTED, warning.reason)
    return evolve(
        departure,
        verdict=Verdict.RESCALE if goes_on else Verdict.STOPPED,
        lost=departure.lost if goes_on else (),
        lost_ranks=departure.lost_ranks if goes_on else (),
        signal_number=warning.number,
        grace_seconds=min(grace, LONGEST_DELAY_SECONDS),
    )
