"""The phases NEW, CHECKING and JOINING: no worker of the node is in a world, and the node waits for a round.

Live workers of the round before may wait with it.

What does not live here: which handler is called when (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

from attrs import evolve

from ..failures import signal_name
from ..records import Cause
from . import _protocol as protocol
from ._ending import end_run
from ._protocol import Phase
from ._state import Joining, Round
from ._transition import Transition

_LONGEST_HISTORY = 100


def begin(transition: Transition, event: protocol.Begin) -> None:
    check(transition, "joining the job")


def check(transition: Transition, reason: str) -> None:
    """Check the node before each join: its health may have changed since the last one."""
    end, history = transition.state.end, transition.state.history
    if end is not None:
        history = (*history, end)[-_LONGEST_HISTORY:]
    transition.enter(Phase.CHECKING, reason, history=history, joining=Joining(), round=None, stopping=None)
    transition.emit(protocol.CheckNode())


def checked(transition: Transition, event: protocol.NodeChecked) -> None:
    if event.problems:
        problem = "; ".join(event.problems)
        transition.emit(protocol.Decline(problem))
        end_run(transition, protocol.Outcome.UNHEALTHY, problem, protocol.NodeIsUnhealthy(problem))
    else:
        transition.enter(Phase.JOINING, transition.state.reason)
        transition.emit(protocol.JoinRound())


def unhealthy(transition: Transition, event: protocol.NodeUnhealthy) -> None:
    transition.emit(protocol.Leave())
    end_run(transition, protocol.Outcome.UNHEALTHY, event.problem, protocol.NodeIsUnhealthy(event.problem))


def joined(transition: Transition, event: protocol.RoundJoined) -> None:
    assignment, history = event.assignment, transition.state.history
    if assignment.missing and history and history[-1].round_number == assignment.round_number - 1:
        transition.set(history=(*history[:-1], evolve(history[-1], missing=assignment.missing)))
    kept = transition.state.kept
    transition.enter(
        Phase.RUNNING, "workers run", round=Round(assignment), joining=None, waiting=None, kept=frozenset()
    )
    transition.emit(protocol.StartWorkers(assignment, kept))


def exited(transition: Transition, event: protocol.WorkersExited) -> None:
    """Live workers have ended while they waited: others are started in their places."""
    transition.set(kept=transition.state.kept - {exit.local_rank for exit in event.exits})


def standing_by(transition: Transition, event: protocol.StandingBy) -> None:
    transition.set(reason=event.reason, joining=Joining(event.reason, _joining(transition).peer_declined))


def peer_declined(transition: Transition, event: protocol.PeerDeclined) -> None:
    transition.set(joining=Joining(_joining(transition).standby_reason, event.reason))


def waiting(transition: Transition, event: protocol.Waiting) -> None:
    transition.set(waiting=event.report, reason=event.report.reason)


def _joining(transition: Transition) -> Joining:
    return transition.state.joining or Joining()


def closed(transition: Transition, event: protocol.JobClosed) -> None:
    is_preempted = event.end.cause is Cause.PREEMPTED
    outcome = protocol.Outcome.PREEMPTED if is_preempted else protocol.Outcome.CLOSED
    end_run(transition, outcome, event.end.reason, protocol.RoundIsOver(), event.end)


def rendezvous_failed(transition: Transition, event: protocol.RendezvousFailed) -> None:
    end_run(transition, protocol.Outcome.ERROR, event.problem, protocol.RendezvousIsLost(event))


def signalled(transition: Transition, event: protocol.SignalReceived) -> None:
    transition.emit(protocol.Leave())
    reason = f"stopped by {signal_name(-event.number)} while joining"
    end_run(transition, protocol.Outcome.SIGNAL, reason, protocol.AgentSignalled(event.number))
    if event.is_person and transition.state.stopping is not None:
        transition.set_stopping(interrupted_at=transition.now)


def warned(transition: Transition, event: protocol.PreemptionWarned) -> None:
    transition.emit(protocol.Leave())
    end_run(transition, protocol.Outcome.PREEMPTED, event.reason, protocol.NodeIsPreempted(event.reason))
