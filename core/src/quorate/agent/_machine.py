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
from typing import Any

from attrs import evolve

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
    PeerStaysOut,
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
    StayOut,
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
    turn = _Turn(state, now)
    handler = _TABLE.get(type(event), {}).get(state.phase)
    if handler is not None:
        handler(turn, event)
    return AgentStep(turn.state, tuple(turn.commands), turn.state.reason)


class _Turn:
    """One step in the making: the state so far, and the commands it has led to."""

    __slots__ = ("commands", "now", "state")

    def __init__(self, state: State, now: float) -> None:
        self.state, self.now = state, now
        self.commands: list[Command] = []

    def set(self, **changes: Any) -> None:
        self.state = evolve(self.state, **changes)

    def go(self, phase: Phase, reason: str, **changes: Any) -> None:
        self.set(phase=phase, reason=reason, **changes)

    def tell(self, *commands: Command) -> None:
        self.commands.extend(commands)

    def finish(self, outcome: Outcome, reason: str) -> None:
        self.go(Phase.FINISHED, reason, wake_at=None)
        self.tell(Finish(outcome, reason))


# --- joining and starting -------------------------------------------------------------------------------------------


def _begin(turn: _Turn, event: Begin) -> None:
    _check(turn, "joining the job")


def _check(turn: _Turn, reason: str) -> None:
    """Before each join: whatever was is over, and this node may have become unfit meanwhile."""
    state = turn.state
    turn.go(
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
    turn.tell(CheckNode())


def _checked(turn: _Turn, event: NodeChecked) -> None:
    if event.problems:
        problem = "; ".join(event.problems)
        turn.set(unhealthy=problem)
        turn.tell(StayOut(problem))
        turn.finish(Outcome.UNHEALTHY, problem)
    else:
        turn.go(Phase.JOINING, turn.state.reason)
        turn.tell(JoinRound())


def _unfit_while_joining(turn: _Turn, event: NodeUnhealthy) -> None:
    turn.set(unhealthy=event.problem)
    _give_up_as_unfit(turn)


def _give_up_as_unfit(turn: _Turn) -> None:
    turn.tell(Leave())
    turn.finish(Outcome.UNHEALTHY, turn.state.unhealthy)


def _joined(turn: _Turn, event: RoundJoined) -> None:
    seat, history = event.assignment, turn.state.history
    if seat.missing and history and history[-1].round_number == seat.round_number - 1:
        turn.set(history=(*history[:-1], evolve(history[-1], missing=seat.missing)))
    turn.go(Phase.RUNNING, "workers run", assignment=seat, was_member=True)
    turn.tell(StartWorkers(seat))


def _standing_by(turn: _Turn, event: StandingBy) -> None:
    turn.set(reason=event.reason, stood_by=True)


def _missed(turn: _Turn, event: PeerStaysOut) -> None:
    turn.set(absence=event.reason)


def _closed_while_joining(turn: _Turn, event: JobClosed) -> None:
    turn.set(end=event.end)
    turn.finish(Outcome.CLOSED, event.end.reason)


def _failed_while_joining(turn: _Turn, event: RendezvousFailed) -> None:
    turn.set(trouble=event)
    turn.finish(Outcome.ERROR, event.problem)


# --- running --------------------------------------------------------------------------------------------------------


def _exited(turn: _Turn, event: WorkersExited) -> None:
    """Count successes; have the failures diagnosed, the first of them with a decision."""
    good = {exit.local_rank for exit in event.exits if exit.exit_code == 0 and not exit.stopped}
    turn.set(succeeded=turn.state.succeeded | good)
    bad = [exit for exit in event.exits if exit.exit_code != 0 and not exit.stopped]
    if turn.state.hang is not None:
        bad = []  # they are victims: where a worker cannot dump its stack and live, the dump ends it
    for exit in bad:
        decide = turn.state.phase is Phase.RUNNING and exit is bad[0]
        turn.tell(Diagnose(exit, budget_of(turn.state) if decide else None))
    state = turn.state
    if state.phase is Phase.RUNNING and _all_succeeded(state):
        turn.go(
            Phase.BARRIER,
            "all workers of this node have succeeded; waiting for the others",
            wake_at=turn.now + state.exit_barrier_timeout,
        )
        turn.tell(ReportDone())
        if state.exit_barrier_timeout <= 0:
            _barrier_is_over(turn, Clock())


def _all_succeeded(state: State) -> bool:
    return state.assignment is not None and len(state.succeeded) == state.assignment.local_world_size


def _start_failed(turn: _Turn, event: StartFailed) -> None:
    turn.tell(Diagnose(event.exit, budget_of(turn.state), start_failed=True))


def _hung(turn: _Turn, event: WorkerHung) -> None:
    """Stacks first: they are what tells people why, and a stop would destroy them."""
    if turn.state.hang is not None or event.local_rank in turn.state.succeeded:
        return
    turn.set(hang=event, wake_at=turn.now + turn.state.dump_timeout)
    turn.tell(DumpStacks(event.local_rank))


def _dumped(turn: _Turn, event: StacksDumped) -> None:
    hang, seat = turn.state.hang, turn.state.assignment
    if hang is None or seat is None:
        return
    turn.set(wake_at=None)
    exit = WorkerExited(
        hang.local_rank,
        hang.pid,
        -_SIGKILL,
        hang.timestamp_ns,
        problem=hang.problem,
        stderr_tail=event.lines,
    )
    turn.tell(Diagnose(exit, budget_of(turn.state), hung=True))


def _dumped_enough(turn: _Turn, event: Clock) -> None:
    if event.due:
        _dumped(turn, StacksDumped())


def _diagnosed(turn: _Turn, event: Diagnosed) -> None:
    state, failure = turn.state, event.failure
    if failure not in state.failures:
        turn.set(failures=(*state.failures, failure))
    if event.decision is not None and state.phase is Phase.RUNNING:
        _decided(turn, failure, event.decision)
    elif state.deferred is not None and failure.cause is not Cause.BROKEN_COLLECTIVE:
        if event.decision is None:  # it is no victim: here is what the others' connections broke over
            turn.tell(Decide(failure, budget_of(state)))
        else:
            _propose(turn, end_by_failure(state, failure, event.decision))


def _decided(turn: _Turn, failure: FailureRecord, decision: RestartDecision) -> None:
    """Stop the workers, and record why, at once or, for a victim, when nobody else has done so in time."""
    state, seat = turn.state, turn.state.assignment
    assert seat is not None
    end = end_by_failure(state, failure, decision)
    excluded = bool(end.lost)
    grace = state.grace.restart if not decision.verdict.is_terminal else state.grace.exit
    if failure.cause is Cause.BROKEN_COLLECTIVE and seat.world_size > 1 and not excluded:
        _stop(turn, end.reason, _SIGTERM, grace, deferred=end)
        # Alone, only a failure that came to light in the same moment can tell more.
        turn.set(wake_at=turn.now + (state.loss_timeout if seat.group_world_size > 1 else 0.0))
    else:
        turn.tell(EndRound(end))
        _stop(turn, end.reason, _SIGTERM, grace, proposed=end, unhealthy=end.reason if excluded else "")


def _propose(turn: _Turn, end: RoundEnd) -> None:
    """Record what was held back."""
    wake_at = turn.now + turn.state.close_timeout if turn.state.gone else None
    turn.set(reason=end.reason, deferred=None, proposed=end, wake_at=wake_at)
    turn.tell(EndRound(end))


def _stop(turn: _Turn, reason: str, with_signal: int, grace: float, **changes: Any) -> None:
    turn.go(Phase.STOPPING, reason, gone=False, wake_at=None, **changes)
    turn.tell(StopWorkers(with_signal, grace))


def _ended(turn: _Turn, event: RoundEnded | JobClosed) -> None:
    end = event.end
    state = turn.state
    if end.verdict is Verdict.RESCALE:
        grace = state.grace.rescale
    elif end.verdict is Verdict.RESTART:
        grace = state.grace.restart
    else:
        grace = state.grace.exit
    _stop(turn, end.reason, _SIGTERM, grace, end=end)


def _trouble(turn: _Turn, event: RendezvousFailed) -> None:
    """The store is away for longer than allowed, or for good: without it this node may not run."""
    _stop(turn, event.problem, _SIGTERM, turn.state.grace.exit, trouble=event)


# --- the exit barrier -----------------------------------------------------------------------------------------------


def _barrier_is_over(turn: _Turn, event: Clock) -> None:
    if event.due or turn.state.exit_barrier_timeout <= 0:
        turn.tell(Leave())
        _stop(turn, "all workers of this node have succeeded", _SIGTERM, turn.state.grace.exit, left=True)


def _barrier_trouble(turn: _Turn, event: RendezvousFailed) -> None:
    """The workers have succeeded; trouble in the barrier does not change that."""
    _stop(
        turn,
        f"all workers of this node have succeeded (the others are unknown: {event.problem})",
        _SIGTERM,
        turn.state.grace.exit,
        left=True,
    )


# --- stopping -------------------------------------------------------------------------------------------------------


def _note_unfit(turn: _Turn, event: NodeUnhealthy) -> None:
    turn.set(unhealthy=event.problem)
    _go_on(turn)


def _note_end(turn: _Turn, event: RoundEnded | JobClosed) -> None:
    turn.set(end=event.end, deferred=None)
    _go_on(turn)


def _note_trouble(turn: _Turn, event: RendezvousFailed) -> None:
    turn.set(trouble=event)
    _go_on(turn)


def _gone(turn: _Turn, event: WorkersGone) -> None:
    turn.set(gone=True)
    if turn.state.deferred is None:
        turn.set(wake_at=turn.now + turn.state.close_timeout)
    _go_on(turn)


def _waited_enough(turn: _Turn, event: Clock) -> None:
    state = turn.state
    if not event.due or state.end is not None:
        return
    if state.deferred is not None:
        _propose(turn, state.deferred)
    else:
        turn.set(end=state.proposed)
        _go_on(turn)


def _go_on(turn: _Turn) -> None:
    """All workers are gone: join again, or finish.  What was recorded counts, not what was proposed."""
    state = turn.state
    if not state.gone:
        return
    if state.signal_number is not None:
        turn.tell(Leave())
        turn.finish(Outcome.SIGNAL, state.reason)
    elif state.left:
        turn.finish(Outcome.SUCCEEDED, state.reason)
    elif state.end is not None:
        _follow(turn, state.end)
    elif state.trouble is not None and _all_succeeded(state):
        turn.finish(Outcome.SUCCEEDED, f"all workers of this node have succeeded ({state.trouble.problem})")
    elif state.trouble is not None:
        failed = state.proposed is not None and state.proposed.verdict.is_terminal
        turn.set(end=state.proposed if failed else None)
        turn.finish(Outcome.FAILED if failed else Outcome.ERROR, state.reason)


def _follow(turn: _Turn, end: RoundEnd) -> None:
    if end.verdict is Verdict.SUCCEEDED:
        turn.finish(Outcome.SUCCEEDED, end.reason)
    elif end.verdict.is_terminal:
        turn.finish(Outcome.FAILED, end.reason)
    elif turn.state.unhealthy:
        _give_up_as_unfit(turn)
    elif turn.state.trouble is not None:
        turn.finish(Outcome.ERROR, turn.state.trouble.problem)
    else:
        _check(turn, end.reason)


# --- signals --------------------------------------------------------------------------------------------------------


def _signal_while_joining(turn: _Turn, event: SignalReceived) -> None:
    turn.set(signal_number=event.number)
    turn.tell(Leave())
    turn.finish(Outcome.SIGNAL, f"stopped by {signal_name(-event.number)} while joining")


def _signal(turn: _Turn, event: SignalReceived) -> None:
    """This node goes away, on purpose: the others re-form without it at once."""
    reason = f"node {_name(turn)} was stopped by {signal_name(-event.number)}"
    _depart(turn, reason, Cause.NODE_LEFT, event.number, signal_number=event.number)


def _unfit(turn: _Turn, event: NodeUnhealthy) -> None:
    """This node goes away because something is wrong with it."""
    reason = f"node {_name(turn)} is unhealthy: {event.problem}"
    _depart(turn, reason, Cause.UNHEALTHY, _SIGTERM, unhealthy=event.problem)


def _name(turn: _Turn) -> str:
    seat = turn.state.assignment
    assert seat is not None
    return turn.state.host or seat.node_id


def _depart(turn: _Turn, reason: str, cause: Cause, with_signal: int, **changes: Any) -> None:
    end = end_by_departure(turn.state, cause, reason)
    turn.tell(EndRound(end))
    _stop(turn, reason, with_signal, turn.state.grace.preemption, proposed=end, **changes)


def _signal_while_stopping(turn: _Turn, event: SignalReceived) -> None:
    """A first signal makes this the last stop; a second one ends the workers' grace."""
    state = turn.state
    if state.signal_number is None:
        turn.set(signal_number=event.number)
        if state.gone:
            _go_on(turn)
        else:
            turn.tell(StopWorkers(event.number, state.grace.preemption))
    else:
        turn.tell(StopWorkers(_SIGKILL, 0.0))


# --- the machine ----------------------------------------------------------------------------------------------------

_Handler = Callable[[_Turn, Any], None]

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
    PeerStaysOut: {Phase.JOINING: _missed},
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
