"""From the agent's last state to the job's verdict.  Pure, but for the time.

What does not live here: what a verdict looks like (:mod:`quorate.verdict`).
"""

from __future__ import annotations

from ..clock import wall_time_ns
from ..errors import FailureKind
from ..records import Cause, FailureRecord, Verdict
from ..verdict import JobState, JobVerdict
from ._protocol import Finish, Outcome, State

__all__ = ["judge"]

_STATES = {
    Verdict.SUCCEEDED: JobState.SUCCEEDED,
    Verdict.STOPPED: JobState.STOPPED,
    Verdict.FAILED: JobState.FAILED,
}
_TROUBLES = {
    FailureKind.TIMEOUT: (JobState.NO_ROUND, Cause.TOO_FEW_NODES),
    FailureKind.UNAVAILABLE: (JobState.STORE_LOST, Cause.STORE_LOST),
    FailureKind.LOST: (JobState.STORE_LOST, Cause.STORE_LOST),
}


def judge(state: State, finish: Finish, run_id: str, node_id: str) -> JobVerdict:
    """Return the verdict on a run that has finished."""
    end = state.end
    kind, cause, reason = _how(state, finish)
    rounds = state.history if end is None or end in state.history else (*state.history, end)
    first = end.failure if end is not None and finish.outcome is not Outcome.SUCCEEDED else None
    used = rounds[-1].restart_count if rounds else 0
    return JobVerdict(
        run_id,
        node_id,
        state.host,
        kind,
        cause,
        reason,
        first_cause=first,
        victims=tuple(failure for failure in state.failures if first is None or not _is_same(failure, first)),
        rounds=rounds,
        restarts_used=used if state.assignment is None else max(used, state.assignment.restart_count),
        restarts_allowed=state.max_restarts,
        signal_number=state.signal_number if kind is JobState.STOPPED else None,
        time_ns=wall_time_ns(),
    )


def _how(state: State, finish: Finish) -> tuple[JobState, Cause, str]:
    end, outcome = state.end, finish.outcome
    if outcome is Outcome.SUCCEEDED:
        return JobState.SUCCEEDED, Cause.SUCCEEDED, finish.reason
    if outcome is Outcome.SIGNAL:
        return JobState.STOPPED, Cause.STOPPED, finish.reason
    if outcome is Outcome.UNHEALTHY:
        return JobState.UNHEALTHY, Cause.UNHEALTHY, finish.reason
    if outcome is Outcome.ERROR or end is None:
        if state.trouble is None:
            return JobState.NO_ROUND, Cause.CONFIGURATION, finish.reason
        return (*_TROUBLES.get(state.trouble.kind, (JobState.NO_ROUND, Cause.CONFIGURATION)), state.trouble.problem)
    return _STATES.get(end.verdict, JobState.FAILED), end.cause, end.reason


def _is_same(failure: FailureRecord, recorded: FailureRecord) -> bool:
    """Whether both tell of the same worker's end; the recorded one may have been cut on its way."""
    return (failure.node_id, failure.rank, failure.restart_count, failure.pid) == (
        recorded.node_id,
        recorded.rank,
        recorded.restart_count,
        recorded.pid,
    )
