"""What becomes of workers once the other nodes may go on without this node, and the phase FROZEN.

Frozen workers stand still until it is known whether the round still runs.  If it does, they go on.  If not, they are
killed as they stand: a grace would be time in which they run beside those of the next round.  Only where the job is
over do they get one, since no round follows.

What does not live here: which handler is called when (:mod:`quorate.agent._machine`), and when a node counts as cut off
(:mod:`quorate.rendezvous`).
"""

from __future__ import annotations

import signal

from ..cut_off import WhenCutOff
from . import _protocol as protocol, _running
from ._ending import stop
from ._protocol import Phase
from ._round_end import end_by_cut_off, end_by_preemption
from ._transition import Transition


def cut_off(transition: Transition, event: protocol.CutOff) -> None:
    """Freeze or kill the workers, before any other node begins the next round."""
    policy = transition.state.settings.when_cut_off
    if policy is WhenCutOff.FREEZE:
        # Workers may be dumping their stacks, and the time for that goes on.
        transition.enter(Phase.FROZEN, f"the workers are frozen: {event.reason}", wake_at=transition.state.wake_at)
        transition.emit(protocol.FreezeWorkers())
    elif policy is WhenCutOff.STOP:
        _kill(transition, event.reason)


def cannot_freeze(transition: Transition, event: protocol.CannotFreeze) -> None:
    _kill(transition, event.problem)


def _kill(transition: Transition, problem: str) -> None:
    """Kill the workers, and end the round for the others, if they have not ended it."""
    end = end_by_cut_off(transition.state, problem)
    transition.emit(protocol.EndRound(end))
    stop(transition, protocol.RoundIsOver(), end.reason, 0.0, signal.SIGKILL, proposed=end)


def reconnected(transition: Transition, event: protocol.Reconnected) -> None:
    reason = "the store answers again, and the round still runs: the workers go on"
    transition.enter(Phase.RUNNING, reason, wake_at=transition.state.wake_at, waiting=None)
    transition.emit(protocol.ThawWorkers())


def round_ended(transition: Transition, event: protocol.RoundEnded | protocol.JobClosed) -> None:
    """No round follows the job's end, so that workers may have their grace; else they are killed."""
    if event.end.verdict.is_terminal:
        transition.enter(Phase.RUNNING, event.end.reason)
        transition.emit(protocol.ThawWorkers())
        _running.round_ended(transition, event)
    else:
        stop(transition, protocol.RoundIsOver(), event.end.reason, 0.0, end=event.end)


def warned(transition: Transition, event: protocol.PreemptionWarned) -> None:
    """The scheduler takes this node; frozen workers get none of the time that is left."""
    end = end_by_preemption(transition.state, event)
    transition.emit(protocol.EndRound(end))
    stop(transition, protocol.NodeIsPreempted(end.reason), end.reason, 0.0, proposed=end)


def cut_off_while_stopping(transition: Transition, event: protocol.CutOff) -> None:
    """The others begin the next round without waiting for these workers to stop: their grace is over.

    A node that leaves keeps it if it could tell the others so.
    """
    stopping = transition.stopping
    if stopping.workers_gone or transition.state.settings.when_cut_off is WhenCutOff.RUN:
        return
    is_forced = isinstance(stopping.why, (protocol.RoundIsOver, protocol.RendezvousIsLost))
    is_leaving = isinstance(stopping.why, (protocol.NodeIsUnhealthy, protocol.NodeIsPreempted, protocol.AgentSignalled))
    if is_forced or (is_leaving and not _has_said_so(transition)):
        transition.emit(protocol.StopWorkers(int(signal.SIGKILL), 0.0))


def _has_said_so(transition: Transition) -> bool:
    end, assignment = transition.stopping.end, transition.state.assignment
    return end is not None and assignment is not None and (end.verdict.is_terminal or assignment.node_id in end.lost)
