"""The phases RUNNING and BARRIER: workers run, or have succeeded and wait for the other nodes.

What does not live here: which handler is called when (:mod:`quorate.agent._machine`), and what follows once the workers
are being stopped (``_stopping``).
"""

from __future__ import annotations

import signal

from ..failures import signal_name
from ..records import Cause, FailureRecord, RestartDecision, Verdict, WorkerExited
from . import _protocol as protocol
from ._ending import release, stop
from ._protocol import Phase
from ._round_end import budget_of, end_by_departure, end_by_failure, end_by_preemption
from ._stopping import announce, note_exits
from ._transition import Transition

# --- workers --------------------------------------------------------------------------------------------------------


def exited(transition: Transition, event: protocol.WorkersExited) -> None:
    """Count successes; have the failures diagnosed, and the first of them decided upon."""
    note_exits(transition, event, budget_of(transition.state))
    if transition.round.all_succeeded:
        timeout = transition.state.settings.exit_barrier_timeout
        reason = "all workers of this node have succeeded; waiting for the others"
        transition.enter(Phase.BARRIER, reason, wake_at=transition.now + timeout)
        transition.emit(protocol.ReportDone())
        if timeout <= 0:
            _leave_barrier(transition)


def waiting(transition: Transition, event: protocol.Waiting) -> None:
    """The store does not answer; the workers go on."""
    transition.set(waiting=event.report)


def start_failed(transition: Transition, event: protocol.StartFailed) -> None:
    transition.emit(protocol.Diagnose(event.exit, budget_of(transition.state), start_failed=True))


def hung(transition: Transition, event: protocol.WorkerHung) -> None:
    """Have the stacks dumped before anything else: a stop would destroy them."""
    if transition.round.hang is not None or event.local_rank in transition.round.succeeded:
        return
    transition.set_round(hang=event)
    transition.set(wake_at=transition.now + transition.state.settings.dump_timeout)
    transition.emit(protocol.DumpStacks(event.local_rank))


def stacks_dumped(transition: Transition, event: protocol.StacksDumped) -> None:
    hang = transition.round.hang
    if hang is None:
        return
    transition.set(wake_at=None)
    exit = WorkerExited(
        hang.local_rank,
        hang.pid,
        -signal.SIGKILL,
        hang.timestamp_ns,
        problem=hang.problem,
        stderr_tail=event.lines,
    )
    transition.emit(protocol.Diagnose(exit, budget_of(transition.state), hung=True))


def dump_timed_out(transition: Transition, event: protocol.Clock) -> None:
    if event.due:
        stacks_dumped(transition, protocol.StacksDumped())


def diagnosed(transition: Transition, event: protocol.Diagnosed) -> None:
    failure = event.failure
    if failure not in transition.round.failures:
        transition.set_round(failures=(*transition.round.failures, failure))
    if event.decision is not None:
        _stop_for(transition, failure, event.decision)


def _stop_for(transition: Transition, failure: FailureRecord, decision: RestartDecision) -> None:
    """End the round and record why: at once, or later where another node may know the cause better."""
    state, assignment = transition.state, transition.assignment
    settings, end = state.settings, end_by_failure(state, failure, decision)
    is_excluded = bool(end.lost)
    grace = settings.grace.exit if decision.verdict.is_terminal else settings.grace.restart
    if failure.cause is Cause.BROKEN_COLLECTIVE and assignment.world_size > 1 and not is_excluded:
        release(transition, end.reason, grace, proposed=end, is_held_back=True)
        # With one node, only a simultaneous failure adds information.
        timeout = settings.loss_timeout if assignment.group_world_size > 1 else 0.0
        transition.set(wake_at=transition.now + timeout)
        return
    transition.emit(protocol.EndRound(end))
    if is_excluded:
        stop(transition, protocol.NodeIsUnhealthy(end.reason), end.reason, grace, proposed=end)
    elif end.verdict.is_terminal:
        stop(transition, protocol.RoundIsOver(), end.reason, grace, proposed=end)
    else:
        release(transition, end.reason, grace, proposed=end)


# --- the round and the rendezvous -----------------------------------------------------------------------------------


def round_ended(transition: Transition, event: protocol.RoundEnded | protocol.JobClosed) -> None:
    end, grace = event.end, transition.state.settings.grace
    if end.cause is Cause.PREEMPTED and end.signal_number:
        announce(transition, end)
        if end.verdict.is_terminal:
            stop(transition, protocol.RoundIsOver(), end.reason, end.grace_seconds, end.signal_number, end=end)
        else:
            release(transition, end.reason, end.grace_seconds, end=end)
    elif end.verdict.is_terminal:
        stop(transition, protocol.RoundIsOver(), end.reason, grace.exit, end=end)
    else:
        release(transition, end.reason, grace.rescale if end.verdict is Verdict.RESCALE else grace.restart, end=end)


def rendezvous_failed(transition: Transition, event: protocol.RendezvousFailed) -> None:
    stop(transition, protocol.RendezvousIsLost(event), event.problem, transition.state.settings.grace.exit)


# --- the exit barrier -----------------------------------------------------------------------------------------------


def barrier_timed_out(transition: Transition, event: protocol.Clock) -> None:
    if event.due:
        _leave_barrier(transition)


def _leave_barrier(transition: Transition) -> None:
    transition.emit(protocol.Leave())
    grace = transition.state.settings.grace.exit
    stop(transition, protocol.WorkersSucceeded(), "all workers of this node have succeeded", grace)


def rendezvous_failed_in_barrier(transition: Transition, event: protocol.RendezvousFailed) -> None:
    """The workers have succeeded; a failure of the rendezvous does not change that, but hides the others' fate."""
    reason = "all workers of this node have succeeded"
    why: protocol.StopReason = protocol.WorkersSucceeded()
    if transition.assignment.group_world_size > 1:
        reason += f"; what became of the other nodes is unknown: {event.problem}"
        why = protocol.RendezvousIsLost(event)
    stop(transition, why, reason, transition.state.settings.grace.exit)


# --- departures -----------------------------------------------------------------------------------------------------


def signalled(transition: Transition, event: protocol.SignalReceived) -> None:
    """This node leaves on purpose: the others form the next round at once."""
    reason = f"node {_name(transition)} was stopped by {signal_name(-event.number)}"
    why = protocol.AgentSignalled(event.number)
    has_grace = transition.state.phase is not Phase.FROZEN
    interrupted_at = transition.now if event.is_person and has_grace else None
    _depart(transition, why, reason, Cause.NODE_LEFT, event.number, interrupted_at)


def warned(transition: Transition, event: protocol.PreemptionWarned) -> None:
    """All workers of the job are told, and save what they have; the job goes on only if enough other nodes stay."""
    end = end_by_preemption(transition.state, event)
    transition.emit(protocol.EndRound(end))
    announce(transition, end)
    why = protocol.NodeIsPreempted(end.reason)
    stop(transition, why, end.reason, end.grace_seconds, end.signal_number, proposed=end)


def unhealthy(transition: Transition, event: protocol.NodeUnhealthy) -> None:
    """This node leaves because something is wrong with it."""
    reason = f"node {_name(transition)} is unhealthy: {event.problem}"
    _depart(transition, protocol.NodeIsUnhealthy(event.problem), reason, Cause.UNHEALTHY, signal.SIGTERM)


def _name(transition: Transition) -> str:
    return transition.state.settings.host or transition.assignment.node_id


def _depart(
    transition: Transition,
    why: protocol.StopReason,
    reason: str,
    cause: Cause,
    with_signal: int,
    interrupted_at: float | None = None,
) -> None:
    end = end_by_departure(transition.state, cause, reason)
    transition.emit(protocol.EndRound(end))
    grace = transition.state.settings.grace.preemption
    stop(transition, why, reason, grace, with_signal, proposed=end, interrupted_at=interrupted_at)
