"""The agent of one node, as a pure state machine: ``step(state, input, now)``.

Theory of operation.  The agent checks its node, joins a round, starts its workers, and waits for whichever comes
first: its workers' end, the round's recorded end, a worker that hangs, trouble with the rendezvous or with the node, or
a signal.  Whatever it is, the workers and everything
they started are gone before anything else happens; only then does the agent join the next round or finish.  A
worker's failure is decided upon here (through the ``decide_restart`` hook) but *recorded* in the round's end, where
the first writer wins: what is recorded, not what was proposed, is what this agent then does.

A worker whose connection to another one broke is a victim as long as nobody knows better.  Its agent stops its workers
at once, but lets the others have the first word: an agent whose own worker failed says so within a round trip, and a
node that died is noticed within its lease.  Only then it records what it has seen itself.

No I/O, no clock, no threads, no hooks here.  ``_TABLE`` is the whole machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from attrs import evolve

from .. import _transition
from ..failures import signal_name
from ..records import Cause, FailureRecord, RestartDecision, RoundEnd, Verdict, WorkerExited
from ._ends import budget_of, end_by_departure, end_by_failure
from ._protocol import (
    AgentStep,
    Begin,
    CheckNode,
    Clock,
    Command,
    Decide,
    Decline,
    Diagnose,
    Diagnosed,
    DumpStacks,
    EndRound,
    Finish,
    Input,
    JobClosed,
    JoinRound,
    Leave,
    NodeChecked,
    NodeUnhealthy,
    Outcome,
    PeerDeclined,
    Phase,
    RendezvousFailed,
    ReportDone,
    RoundEnded,
    RoundJoined,
    SignalReceived,
    StacksDumped,
    StandingBy,
    StartFailed,
    StartWorkers,
    State,
    StopWorkers,
    WorkerHung,
    WorkersExited,
    WorkersGone,
)

__all__ = ["initial_state", "step"]

_SIGKILL, _SIGTERM = 9, 15
_LONGEST_HISTORY = 100

initial_state = State


def step(state: State, event: Input, now: float) -> AgentStep:
    """Take one input at ``now`` (monotonic seconds) and return the new state, the commands and the reason."""
    transition = Transition(state, now)
    handler = _TABLE.get(type(event), {}).get(state.phase)
    if handler is not None:
        handler(transition, event)
    return AgentStep(transition.state, tuple(transition.commands), transition.state.reason)


@final
class Transition(_transition.Transition[State, Command]):
    """One step of the agent's machine in the making."""

    def enter(self, phase: Phase, reason: str, **changes: Any) -> None:
        """Change the phase, and say why."""
        self.set(phase=phase, reason=reason, **changes)

    def finish(self, outcome: Outcome, reason: str) -> None:
        self.enter(Phase.FINISHED, reason, wake_at=None)
        self.emit(Finish(outcome, reason))


# --- joining and starting -------------------------------------------------------------------------------------------


def _begin(transition: Transition, event: Begin) -> None:
    _check(transition, "joining the job")


def _check(transition: Transition, reason: str) -> None:
    """Before each join: whatever was is over, and this node may have become declined meanwhile."""
    state = transition.state
    transition.enter(
        Phase.CHECKING,
        reason,
        assignment=None,
        succeeded=frozenset(),
        failures=(),
        deferred=None,
        proposed=None,
        end=None,
        last_end=state.end,
        history=state.history if state.end is None else (*state.history, state.end)[-_LONGEST_HISTORY:],
        hang=None,
        gone=False,
        wake_at=None,
    )
    transition.emit(CheckNode())


def _checked(transition: Transition, event: NodeChecked) -> None:
    if event.problems:
        problem = "; ".join(event.problems)
        transition.set(unhealthy=problem)
        transition.emit(Decline(problem))
        transition.finish(Outcome.UNHEALTHY, problem)
    else:
        transition.enter(Phase.JOINING, transition.state.reason)
        transition.emit(JoinRound())


def _unfit_while_joining(transition: Transition, event: NodeUnhealthy) -> None:
    transition.set(unhealthy=event.problem)
    _give_up_as_unfit(transition)


def _give_up_as_unfit(transition: Transition) -> None:
    transition.emit(Leave())
    transition.finish(Outcome.UNHEALTHY, transition.state.unhealthy)


def _joined(transition: Transition, event: RoundJoined) -> None:
    assignment, history = event.assignment, transition.state.history
    if assignment.missing and history and history[-1].round_number == assignment.round_number - 1:
        transition.set(history=(*history[:-1], evolve(history[-1], missing=assignment.missing)))
    transition.enter(Phase.RUNNING, "workers run", assignment=assignment, was_member=True)
    transition.emit(StartWorkers(assignment))


def _standing_by(transition: Transition, event: StandingBy) -> None:
    transition.set(reason=event.reason, stood_by=True)


def _missed(transition: Transition, event: PeerDeclined) -> None:
    transition.set(peer_declined=event.reason)


def _closed_while_joining(transition: Transition, event: JobClosed) -> None:
    transition.set(end=event.end)
    transition.finish(Outcome.CLOSED, event.end.reason)


def _failed_while_joining(transition: Transition, event: RendezvousFailed) -> None:
    transition.set(trouble=event)
    transition.finish(Outcome.ERROR, event.problem)


# --- running --------------------------------------------------------------------------------------------------------


def _exited(transition: Transition, event: WorkersExited) -> None:
    """Count successes; have the failures diagnosed, the first of them with a decision."""
    good = {exit.local_rank for exit in event.exits if exit.exit_code == 0 and not exit.stopped}
    transition.set(succeeded=transition.state.succeeded | good)
    bad = [exit for exit in event.exits if exit.exit_code != 0 and not exit.stopped]
    if transition.state.hang is not None:
        bad = []  # they are victims: where a worker cannot dump its stack and live, the dump ends it
    for exit in bad:
        decide = transition.state.phase is Phase.RUNNING and exit is bad[0]
        transition.emit(Diagnose(exit, budget_of(transition.state) if decide else None))
    state = transition.state
    if state.phase is Phase.RUNNING and _all_succeeded(state):
        transition.enter(
            Phase.BARRIER,
            "all workers of this node have succeeded; waiting for the others",
            wake_at=transition.now + state.exit_barrier_timeout,
        )
        transition.emit(ReportDone())
        if state.exit_barrier_timeout <= 0:
            _barrier_is_over(transition, Clock())


def _all_succeeded(state: State) -> bool:
    return state.assignment is not None and len(state.succeeded) == state.assignment.local_world_size


def _start_failed(transition: Transition, event: StartFailed) -> None:
    transition.emit(Diagnose(event.exit, budget_of(transition.state), start_failed=True))


def _hung(transition: Transition, event: WorkerHung) -> None:
    """Stacks first: they are what tells people why, and a stop would destroy them."""
    if transition.state.hang is not None or event.local_rank in transition.state.succeeded:
        return
    transition.set(hang=event, wake_at=transition.now + transition.state.dump_timeout)
    transition.emit(DumpStacks(event.local_rank))


def _dumped(transition: Transition, event: StacksDumped) -> None:
    hang, assignment = transition.state.hang, transition.state.assignment
    if hang is None or assignment is None:
        return
    transition.set(wake_at=None)
    exit = WorkerExited(
        hang.local_rank,
        hang.pid,
        -_SIGKILL,
        hang.timestamp_ns,
        problem=hang.problem,
        stderr_tail=event.lines,
    )
    transition.emit(Diagnose(exit, budget_of(transition.state), hung=True))


def _dumped_enough(transition: Transition, event: Clock) -> None:
    if event.due:
        _dumped(transition, StacksDumped())


def _diagnosed(transition: Transition, event: Diagnosed) -> None:
    state, failure = transition.state, event.failure
    if failure not in state.failures:
        transition.set(failures=(*state.failures, failure))
    if event.decision is not None and state.phase is Phase.RUNNING:
        _decided(transition, failure, event.decision)
    elif state.deferred is not None and failure.cause is not Cause.BROKEN_COLLECTIVE:
        if event.decision is None:  # it is no victim: here is what the others' connections broke over
            transition.emit(Decide(failure, budget_of(state)))
        else:
            _propose(transition, end_by_failure(state, failure, event.decision))


def _decided(transition: Transition, failure: FailureRecord, decision: RestartDecision) -> None:
    """Stop the workers, and record why, at once or, for a victim, when nobody else has done so in time."""
    state, assignment = transition.state, transition.state.assignment
    assert assignment is not None
    end = end_by_failure(state, failure, decision)
    excluded = bool(end.lost)
    grace = state.grace.restart if not decision.verdict.is_terminal else state.grace.exit
    if failure.cause is Cause.BROKEN_COLLECTIVE and assignment.world_size > 1 and not excluded:
        _stop(transition, end.reason, _SIGTERM, grace, deferred=end)
        # Alone, only a failure that came to light in the same moment can tell more.
        transition.set(wake_at=transition.now + (state.loss_timeout if assignment.group_world_size > 1 else 0.0))
    else:
        transition.emit(EndRound(end))
        _stop(transition, end.reason, _SIGTERM, grace, proposed=end, unhealthy=end.reason if excluded else "")


def _propose(transition: Transition, end: RoundEnd) -> None:
    """Record what was held back."""
    wake_at = transition.now + transition.state.close_timeout if transition.state.gone else None
    transition.set(reason=end.reason, deferred=None, proposed=end, wake_at=wake_at)
    transition.emit(EndRound(end))


def _stop(transition: Transition, reason: str, with_signal: int, grace: float, **changes: Any) -> None:
    transition.enter(Phase.STOPPING, reason, gone=False, wake_at=None, **changes)
    transition.emit(StopWorkers(with_signal, grace))


def _ended(transition: Transition, event: RoundEnded | JobClosed) -> None:
    end = event.end
    state = transition.state
    if end.verdict is Verdict.RESCALE:
        grace = state.grace.rescale
    elif end.verdict is Verdict.RESTART:
        grace = state.grace.restart
    else:
        grace = state.grace.exit
    _stop(transition, end.reason, _SIGTERM, grace, end=end)


def _trouble(transition: Transition, event: RendezvousFailed) -> None:
    """The store is away for longer than allowed, or for good: without it this node may not run."""
    _stop(transition, event.problem, _SIGTERM, transition.state.grace.exit, trouble=event)


# --- the exit barrier -----------------------------------------------------------------------------------------------


def _barrier_is_over(transition: Transition, event: Clock) -> None:
    if event.due or transition.state.exit_barrier_timeout <= 0:
        transition.emit(Leave())
        _stop(transition, "all workers of this node have succeeded", _SIGTERM, transition.state.grace.exit, left=True)


def _barrier_trouble(transition: Transition, event: RendezvousFailed) -> None:
    """The workers have succeeded; trouble in the barrier does not change that."""
    _stop(
        transition,
        f"all workers of this node have succeeded (the others are unknown: {event.problem})",
        _SIGTERM,
        transition.state.grace.exit,
        left=True,
    )


# --- stopping -------------------------------------------------------------------------------------------------------


def _note_unfit(transition: Transition, event: NodeUnhealthy) -> None:
    transition.set(unhealthy=event.problem)
    _go_on(transition)


def _note_end(transition: Transition, event: RoundEnded | JobClosed) -> None:
    transition.set(end=event.end, deferred=None)
    _go_on(transition)


def _note_trouble(transition: Transition, event: RendezvousFailed) -> None:
    transition.set(trouble=event)
    _go_on(transition)


def _gone(transition: Transition, event: WorkersGone) -> None:
    transition.set(gone=True)
    if transition.state.deferred is None:
        transition.set(wake_at=transition.now + transition.state.close_timeout)
    _go_on(transition)


def _waited_enough(transition: Transition, event: Clock) -> None:
    state = transition.state
    if not event.due or state.end is not None:
        return
    if state.deferred is not None:
        _propose(transition, state.deferred)
    else:
        transition.set(end=state.proposed)
        _go_on(transition)


def _go_on(transition: Transition) -> None:
    """All workers are gone: join again, or finish.  What was recorded counts, not what was proposed."""
    state = transition.state
    if not state.gone:
        return
    if state.signal_number is not None:
        transition.emit(Leave())
        transition.finish(Outcome.SIGNAL, state.reason)
    elif state.left:
        transition.finish(Outcome.SUCCEEDED, state.reason)
    elif state.end is not None:
        _follow(transition, state.end)
    elif state.trouble is not None and _all_succeeded(state):
        transition.finish(Outcome.SUCCEEDED, f"all workers of this node have succeeded ({state.trouble.problem})")
    elif state.trouble is not None:
        failed = state.proposed is not None and state.proposed.verdict.is_terminal
        transition.set(end=state.proposed if failed else None)
        transition.finish(Outcome.FAILED if failed else Outcome.ERROR, state.reason)


def _follow(transition: Transition, end: RoundEnd) -> None:
    if end.verdict is Verdict.SUCCEEDED:
        transition.finish(Outcome.SUCCEEDED, end.reason)
    elif end.verdict.is_terminal:
        transition.finish(Outcome.FAILED, end.reason)
    elif transition.state.unhealthy:
        _give_up_as_unfit(transition)
    elif transition.state.trouble is not None:
        transition.finish(Outcome.ERROR, transition.state.trouble.problem)
    else:
        _check(transition, end.reason)


# --- signals --------------------------------------------------------------------------------------------------------


def _signal_while_joining(transition: Transition, event: SignalReceived) -> None:
    transition.set(signal_number=event.number)
    transition.emit(Leave())
    transition.finish(Outcome.SIGNAL, f"stopped by {signal_name(-event.number)} while joining")


def _signal(transition: Transition, event: SignalReceived) -> None:
    """This node goes away, on purpose: the others re-form without it at once."""
    reason = f"node {_name(transition)} was stopped by {signal_name(-event.number)}"
    _depart(transition, reason, Cause.NODE_LEFT, event.number, signal_number=event.number)


def _unfit(transition: Transition, event: NodeUnhealthy) -> None:
    """This node goes away because something is wrong with it."""
    reason = f"node {_name(transition)} is unhealthy: {event.problem}"
    _depart(transition, reason, Cause.UNHEALTHY, _SIGTERM, unhealthy=event.problem)


def _name(transition: Transition) -> str:
    assignment = transition.state.assignment
    assert assignment is not None
    return transition.state.host or assignment.node_id


def _depart(transition: Transition, reason: str, cause: Cause, with_signal: int, **changes: Any) -> None:
    end = end_by_departure(transition.state, cause, reason)
    transition.emit(EndRound(end))
    _stop(transition, reason, with_signal, transition.state.grace.preemption, proposed=end, **changes)


def _signal_while_stopping(transition: Transition, event: SignalReceived) -> None:
    """A first signal makes this the last stop; a second one ends the workers' grace."""
    state = transition.state
    if state.signal_number is None:
        transition.set(signal_number=event.number)
        if state.gone:
            _go_on(transition)
        else:
            transition.emit(StopWorkers(event.number, state.grace.preemption))
    else:
        transition.emit(StopWorkers(_SIGKILL, 0.0))


# --- the machine ----------------------------------------------------------------------------------------------------

_Handler = Callable[[Transition, Any], None]

#: input -> phase -> handler; whatever is not listed changes nothing
_TABLE: Mapping[type, Mapping[Phase, _Handler]] = {
    Begin: {Phase.NEW: _begin},
    NodeChecked: {Phase.CHECKING: _checked},
    NodeUnhealthy: {
        Phase.CHECKING: _unfit_while_joining,
        Phase.JOINING: _unfit_while_joining,
        Phase.RUNNING: _unfit,
        Phase.STOPPING: _note_unfit,
    },
    RoundJoined: {Phase.JOINING: _joined},
    StandingBy: {Phase.JOINING: _standing_by},
    PeerDeclined: {Phase.JOINING: _missed},
    WorkerHung: {Phase.RUNNING: _hung},
    StacksDumped: {Phase.RUNNING: _dumped},
    WorkersExited: {Phase.RUNNING: _exited, Phase.STOPPING: _exited},
    StartFailed: {Phase.RUNNING: _start_failed},
    Diagnosed: {Phase.RUNNING: _diagnosed, Phase.STOPPING: _diagnosed},
    WorkersGone: {Phase.STOPPING: _gone},
    RoundEnded: {Phase.RUNNING: _ended, Phase.BARRIER: _ended, Phase.STOPPING: _note_end},
    JobClosed: {
        Phase.CHECKING: _closed_while_joining,
        Phase.JOINING: _closed_while_joining,
        Phase.RUNNING: _ended,
        Phase.BARRIER: _ended,
        Phase.STOPPING: _note_end,
    },
    RendezvousFailed: {
        Phase.CHECKING: _failed_while_joining,
        Phase.JOINING: _failed_while_joining,
        Phase.RUNNING: _trouble,
        Phase.BARRIER: _barrier_trouble,
        Phase.STOPPING: _note_trouble,
    },
    SignalReceived: {
        Phase.CHECKING: _signal_while_joining,
        Phase.JOINING: _signal_while_joining,
        Phase.RUNNING: _signal,
        Phase.BARRIER: _signal,
        Phase.STOPPING: _signal_while_stopping,
    },
    Clock: {Phase.RUNNING: _dumped_enough, Phase.BARRIER: _barrier_is_over, Phase.STOPPING: _waited_enough},
}
