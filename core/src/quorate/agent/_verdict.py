"""Forms the job's verdict from the agent's last state.  Pure, except that it reads the time.

What does not live here: what a verdict looks like (:mod:`quorate.verdict`).
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from ..clock import wall_time_ns
from ..clusters import ClusterJob
from ..errors import FailureKind
from ..records import Cause, Verdict
from ..verdict import JobState, JobVerdict, LiveRound
from . import _protocol as protocol
from ._state import State

_STATES = {
    Verdict.SUCCEEDED: JobState.SUCCEEDED,
    Verdict.STOPPED: JobState.STOPPED,
    Verdict.FAILED: JobState.FAILED,
}
_OUTCOMES = {
    protocol.Outcome.SUCCEEDED: (JobState.SUCCEEDED, Cause.SUCCEEDED),
    protocol.Outcome.SIGNAL: (JobState.STOPPED, Cause.STOPPED),
    protocol.Outcome.PREEMPTED: (JobState.PREEMPTED, Cause.PREEMPTED),
    protocol.Outcome.UNHEALTHY: (JobState.UNHEALTHY, Cause.UNHEALTHY),
}
_TROUBLES = {
    FailureKind.TIMEOUT: (JobState.NO_ROUND, Cause.TOO_FEW_NODES),
    FailureKind.UNAVAILABLE: (JobState.STORE_LOST, Cause.STORE_LOST),
    FailureKind.LOST: (JobState.STORE_LOST, Cause.STORE_LOST),
}
#: What tells one worker's end from all others; the rest of the recorded one may have been cut on its way.
_identity = attrgetter("node_id", "rank", "restart_count", "pid")


def judge(
    state: State,
    run_id: str,
    node_id: str,
    cluster: ClusterJob | None = None,
    live_rounds: Iterable[LiveRound] = (),
) -> JobVerdict:
    """Return the verdict on a run that has finished."""
    finish = state.finish
    assert finish is not None
    end, rounds = finish.end, state.ends
    kind, cause, reason = _describe(state, finish)
    first = end.failure if end is not None and finish.outcome is not protocol.Outcome.SUCCEEDED else None
    used = rounds[-1].restart_count if rounds else 0
    return JobVerdict(
        run_id,
        node_id,
        state.settings.host,
        kind,
        cause,
        reason,
        first_cause=first,
        victims=tuple(failure for failure in state.failures if first is None or _identity(failure) != _identity(first)),
        rounds=rounds,
        restarts_used=used if state.assignment is None else max(used, state.assignment.restart_count),
        restarts_allowed=state.max_restarts,
        signal_number=state.signal_number if kind is JobState.STOPPED else None,
        time_ns=wall_time_ns(),
        cluster=cluster,
        live_rounds=tuple(live_rounds),
    )


def _describe(state: State, finish: protocol.Finish) -> tuple[JobState, Cause, str]:
    end, trouble, outcome = finish.end, state.trouble, finish.outcome
    if outcome in _OUTCOMES:
        return (*_OUTCOMES[outcome], finish.reason)
    if outcome is protocol.Outcome.ERROR or end is None:
        if trouble is None:
            return JobState.NO_ROUND, Cause.CONFIGURATION, finish.reason
        return (*_TROUBLES.get(trouble.kind, (JobState.NO_ROUND, Cause.CONFIGURATION)), trouble.problem)
    return _STATES.get(end.verdict, JobState.FAILED), end.cause, end.reason
