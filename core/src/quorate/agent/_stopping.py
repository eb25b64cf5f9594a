"""The phase STOPPING: workers are being stopped or released, and nothing new begins until that is done.

Why they are stopped is one value (:data:`~quorate.agent._protocol.StopReason`), which says what follows.  What does not
live here: which handler is called when (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from ..records import Cause, RestartBudget, RoundEnd, Verdict
from . import _protocol as protocol
from ._ending import end_run
from ._joining import check
from ._round_end import budget_of, end_by_failure
from ._state import Stopping
from ._transition import Transition

#: A second Ctrl-C counts from this long after the first: keys bounce, and a person has to read first.
SECOND_INTERRUPT_SECONDS = 0.5


def announce(transition: Transition, end: RoundEnd) -> None:
    """Tell the workers how long they have."""
    transition.emit(protocol.AnnounceDeadline(end.signal_number, end.grace_seconds, end.reason))


def note_exits(transition: Transition, event: protocol.WorkersExited, budget: RestartBudget | None = None) -> None:
    """Count successes; have failures diagnosed, the first with ``budget``.  Workers that were stopped are neither."""
    if transition.state.round is None:
        return  # live workers that waited for a round that did not come
    own = [exit for exit in event.exits if not exit.stopped]
    good = {exit.local_rank for exit in own if exit.exit_code == 0}
    transition.set_round(succeeded=transition.round.succeeded | good)
    if transition.round.hang is not None:
        return  # where a worker cannot dump its stack and live, the dump has ended it
    for exit in own:
        if exit.exit_code != 0:
            transition.emit(protocol.Diagnose(exit, budget))
            budget = None


# --- what is learnt meanwhile ---------------------------------------------------------------------------------------


def exited(transition: Transition, event: protocol.WorkersExited) -> None:
    if transition.stopping.workers_gone:  # they were live, and waited for the next round
        transition.set(kept=transition.state.kept - {exit.local_rank for exit in event.exits})
    else:
        note_exits(transition, event)


def diagnosed(transition: Transition, event: protocol.Diagnosed) -> None:
    """Note a late failure.  One that is not a victim's takes the place of a proposal that was held back."""
    failure = event.failure
    if transition.state.round is None:
        return
    if failure not in transition.round.failures:
        transition.set_round(failures=(*transition.round.failures, failure))
    if not transition.stopping.is_held_back or failure.cause is Cause.BROKEN_COLLECTIVE:
        return
    if event.decision is None:
        transition.emit(protocol.Decide(failure, budget_of(transition.state)))
    else:
        end = end_by_failure(transition.state, failure, event.decision)
        if end.lost:
            _change_reason(transition, protocol.NodeIsUnhealthy(end.reason))
        _propose(transition, end)


def unhealthy(transition: Transition, event: protocol.NodeUnhealthy) -> None:
    _change_reason(transition, protocol.NodeIsUnhealthy(event.problem))


def end_recorded(transition: Transition, event: protocol.RoundEnded | protocol.JobClosed) -> None:
    if isinstance(transition.stopping.why, protocol.NoNextRound):
        return
    transition.set(wake_at=None)
    transition.set_stopping(end=event.end, is_held_back=False)
    _go_on(transition)


def rendezvous_failed(transition: Transition, event: protocol.RendezvousFailed) -> None:
    stopping = transition.stopping
    if stopping.end is None or not isinstance(stopping.why, protocol.NodeIsUnhealthy):  # else this node leaves anyway
        _change_reason(transition, protocol.RendezvousIsLost(event))
    _go_on(transition)


def signalled(transition: Transition, event: protocol.SignalReceived) -> None:
    """A first signal makes this the last stop.  Of those that follow only a person's second Ctrl-C changes anything.

    Programs send signals twice: ``timeout``, a batch script's trap, Slurm, an outer launcher.  While the scheduler
    takes the node its signals come several times, and have been followed.
    """
    if _is_preempted(transition.stopping) and event.number not in (signal.SIGINT, signal.SIGQUIT):
        return
    first = transition.stopping.interrupted_at
    if event.is_person and first is not None and transition.now - first >= SECOND_INTERRUPT_SECONDS:
        transition.emit(protocol.StopWorkers(int(signal.SIGKILL), 0.0))
        return
    if event.is_person and first is None:
        transition.set_stopping(interrupted_at=transition.now)
    if transition.state.signal_number is not None:
        return
    _change_reason(transition, protocol.AgentSignalled(event.number))
    if transition.stopping.workers_gone:
        _go_on(transition)
    else:
        transition.emit(protocol.StopWorkers(event.number, transition.state.settings.grace.preemption))


def _is_preempted(stopping: Stopping) -> bool:
    ends = [end for end in (stopping.end, stopping.proposed) if end is not None]
    return isinstance(stopping.why, protocol.NodeIsPreempted) or any(end.cause is Cause.PREEMPTED for end in ends)


def warned(transition: Transition, event: protocol.PreemptionWarned) -> None:
    """Make this the last stop, within the time that is left; a warning that was followed already changes nothing."""
    if _is_preempted(transition.stopping):
        return
    _change_reason(transition, protocol.NodeIsPreempted(event.reason))
    if transition.stopping.workers_gone:
        _go_on(transition)
        return
    grace = transition.state.settings.grace.preemption if event.grace_seconds is None else event.grace_seconds
    transition.emit(protocol.AnnounceDeadline(event.number, grace, event.reason))
    transition.emit(protocol.StopWorkers(event.number, grace))


#: A later reason takes the place of an earlier one only if it does not stand before it here.
_PRECEDENCE = (
    protocol.RoundIsOver,
    protocol.NodeIsUnhealthy,
    protocol.RendezvousIsLost,
    protocol.WorkersSucceeded,
    protocol.NoNextRound,
    protocol.NodeIsPreempted,
    protocol.AgentSignalled,
)


def _change_reason(transition: Transition, why: protocol.StopReason) -> None:
    if _PRECEDENCE.index(type(why)) >= _PRECEDENCE.index(type(transition.stopping.why)):
        transition.set_stopping(why=why)


# --- what follows ---------------------------------------------------------------------------------------------------


def gone(transition: Transition, event: protocol.WorkersGone) -> None:
    transition.set(kept=event.kept)
    transition.set_stopping(workers_gone=True)
    if not transition.stopping.is_held_back:
        transition.set(wake_at=transition.now + transition.state.settings.close_timeout)
    _go_on(transition)


def timed_out(transition: Transition, event: protocol.Clock) -> None:
    """Send a proposal that was held back; follow one that was not recorded in time."""
    stopping = transition.stopping
    if not event.due or stopping.end is not None or stopping.proposed is None:
        return
    if stopping.is_held_back:
        _propose(transition, stopping.proposed)
    else:
        transition.set_stopping(end=stopping.proposed)
        _go_on(transition)


def _propose(transition: Transition, end: RoundEnd) -> None:
    is_gone = transition.stopping.workers_gone
    wake_at = transition.now + transition.state.settings.close_timeout if is_gone else None
    transition.set_stopping(proposed=end, is_held_back=False)
    transition.set(reason=end.reason, wake_at=wake_at)
    transition.emit(protocol.EndRound(end))


def _go_on(transition: Transition) -> None:
    """Do what follows from the reason, once all workers are gone."""
    stopping = transition.stopping
    if stopping.workers_gone:
        _FOLLOWS[type(stopping.why)](transition, stopping)


def _follow_round(transition: Transition, stopping: Stopping) -> None:
    """What was recorded counts, not what was proposed; until it is known this node waits."""
    end, why = stopping.end, stopping.why
    if end is None:
        return
    if end.verdict.is_terminal:
        end_run(transition, _outcome_of(end), end.reason, why, end)
    elif isinstance(why, protocol.NodeIsUnhealthy):
        transition.emit(protocol.Leave())
        end_run(transition, protocol.Outcome.UNHEALTHY, why.problem, why, end)
    elif isinstance(why, protocol.RendezvousIsLost):
        end_run(transition, protocol.Outcome.ERROR, why.failure.problem, why, end)
    else:
        check(transition, end.reason)


def _follow_loss(transition: Transition, stopping: Stopping) -> None:
    why, proposed, reason = stopping.why, stopping.proposed, transition.state.reason
    assert isinstance(why, protocol.RendezvousIsLost)
    if stopping.end is not None:
        _follow_round(transition, stopping)
    elif transition.round.all_succeeded:
        reason = (
            f"all workers of this node have succeeded; what became of the other nodes is unknown: {why.failure.problem}"
        )
        end_run(transition, protocol.Outcome.SUCCEEDED, reason, why)
    elif proposed is not None and not stopping.is_held_back and proposed.verdict.is_terminal:
        end_run(transition, protocol.Outcome.FAILED, reason, why, proposed)
    else:
        end_run(transition, protocol.Outcome.ERROR, reason, why)


def _follow_success(transition: Transition, stopping: Stopping) -> None:
    end_run(transition, protocol.Outcome.SUCCEEDED, transition.state.reason, stopping.why, stopping.end)


def _outcome_of(end: RoundEnd) -> protocol.Outcome:
    if end.verdict is Verdict.SUCCEEDED:
        return protocol.Outcome.SUCCEEDED
    return protocol.Outcome.PREEMPTED if end.cause is Cause.PREEMPTED else protocol.Outcome.FAILED


def _follow_preemption(transition: Transition, stopping: Stopping) -> None:
    """What was recorded counts: the job's end, or this node's departure."""
    end, why = stopping.end, stopping.why
    assert isinstance(why, protocol.NodeIsPreempted)
    if end is None and stopping.proposed is not None:
        return
    if end is not None and end.verdict.is_terminal:
        transition.finish(_outcome_of(end), end.reason, why, end)
    else:
        transition.emit(protocol.Leave())
        transition.finish(protocol.Outcome.PREEMPTED, why.reason, why, end)


def _follow_signal(transition: Transition, stopping: Stopping) -> None:
    transition.emit(protocol.Leave())
    end_run(transition, protocol.Outcome.SIGNAL, transition.state.reason, stopping.why, stopping.end)


def _follow_decision(transition: Transition, stopping: Stopping) -> None:
    assert isinstance(stopping.why, protocol.NoNextRound)
    finish = stopping.why.finish
    transition.finish(finish.outcome, finish.reason, finish.why, finish.end)


_FOLLOWS: Mapping[type, Callable[[Transition, Stopping], None]] = {
    protocol.RoundIsOver: _follow_round,
    protocol.NodeIsUnhealthy: _follow_round,
    protocol.RendezvousIsLost: _follow_loss,
    protocol.WorkersSucceeded: _follow_success,
    protocol.NoNextRound: _follow_decision,
    protocol.NodeIsPreempted: _follow_preemption,
    protocol.AgentSignalled: _follow_signal,
}
