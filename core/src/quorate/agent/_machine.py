"""The agent of one node, as a pure state machine: ``step(state, input, now)``.

Theory of operation.  The agent joins a round, starts its workers, and waits for whichever comes first: its workers'
end, the round's recorded end, trouble with the rendezvous, or a signal.  Whatever it is, the workers and everything
they started are gone before anything else happens; only then does the agent join the next round or finish.  A
worker's failure is decided upon here (through the ``decide_restart`` hook) but *recorded* in the round's end, where
the first writer wins: what is recorded, not what was proposed, is what this agent then does.

No I/O, no clock, no threads, no hooks here.  ``_TABLE`` is the whole machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve

from ..failures import signal_name
from ..records import Cause, RestartBudget, RoundEnd, Verdict
from ._protocol import (
    AgentStep,
    Begin,
    Clock,
    Command,
    Diagnose,
    Diagnosed,
    EndRound,
    Finish,
    Input,
    JobClosed,
    JoinRound,
    Leave,
    Outcome,
    Phase,
    RendezvousFailed,
    ReportDone,
    RoundEnded,
    RoundJoined,
    SignalReceived,
    StandingBy,
    StartFailed,
    StartWorkers,
    State,
    StopWorkers,
    WorkersExited,
    WorkersGone,
)

__all__ = ["initial_state", "step"]

_SIGKILL, _SIGTERM = 9, 15

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
    _join(turn, "joining the job")


def _join(turn: _Turn, reason: str) -> None:
    turn.go(
        Phase.JOINING,
        reason,
        assignment=None,
        succeeded=frozenset(),
        failures=(),
        proposed=None,
        end=None,
        last_end=turn.state.end,
        gone=False,
        wake_at=None,
    )
    turn.tell(JoinRound())


def _joined(turn: _Turn, event: RoundJoined) -> None:
    turn.go(Phase.RUNNING, "workers run", assignment=event.assignment, was_member=True)
    turn.tell(StartWorkers(event.assignment))


def _standing_by(turn: _Turn, event: StandingBy) -> None:
    turn.set(reason=event.reason, stood_by=True)


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
    for exit in bad:
        seat = turn.state.assignment
        assert seat is not None
        decide = turn.state.phase is Phase.RUNNING and exit is bad[0]
        budget = RestartBudget(seat.restart_count, turn.state.max_restarts)
        turn.tell(Diagnose(exit, budget if decide else None))
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
    seat = turn.state.assignment
    assert seat is not None
    turn.tell(Diagnose(event.exit, RestartBudget(seat.restart_count, turn.state.max_restarts), start_failed=True))


def _diagnosed(turn: _Turn, event: Diagnosed) -> None:
    state = turn.state
    turn.set(failures=(*state.failures, event.failure))
    if event.decision is None or state.phase is not Phase.RUNNING:
        return
    seat, failure, decision = state.assignment, event.failure, event.decision
    assert seat is not None
    again = decision.verdict is Verdict.RESTART
    summary = failure.message.strip().splitlines()[0] if failure.message.strip() else ""
    where = f" on {failure.host}" if failure.host else ""
    reason = f"rank {failure.rank} (local rank {failure.local_rank}){where} failed: {summary}"
    if decision.reason:
        reason += f"; {decision.reason}"
    end = RoundEnd(
        seat.round_number,
        failure.cause,
        decision.verdict,
        reason,
        node_id=seat.node_id,
        host=failure.host,
        rank=failure.rank,
        restart_count=seat.restart_count + (1 if again else 0),
        delay_seconds=decision.delay_seconds,
        failure=failure,
    )
    grace = state.grace.restart if not decision.verdict.is_terminal else state.grace.exit
    turn.tell(EndRound(end))
    _stop(turn, reason, _SIGTERM, grace, proposed=end)


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


def _note_end(turn: _Turn, event: RoundEnded | JobClosed) -> None:
    turn.set(end=event.end)
    _go_on(turn)


def _note_trouble(turn: _Turn, event: RendezvousFailed) -> None:
    turn.set(trouble=event)
    _go_on(turn)


def _gone(turn: _Turn, event: WorkersGone) -> None:
    turn.set(gone=True, wake_at=turn.now + turn.state.close_timeout)
    _go_on(turn)


def _waited_enough(turn: _Turn, event: Clock) -> None:
    if event.due and turn.state.end is None:
        turn.set(end=turn.state.proposed)
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
    elif turn.state.trouble is not None:
        turn.finish(Outcome.ERROR, turn.state.trouble.problem)
    else:
        _join(turn, end.reason)


# --- signals --------------------------------------------------------------------------------------------------------


def _signal_while_joining(turn: _Turn, event: SignalReceived) -> None:
    turn.set(signal_number=event.number)
    turn.tell(Leave())
    turn.finish(Outcome.SIGNAL, f"stopped by {signal_name(-event.number)} while joining")


def _signal(turn: _Turn, event: SignalReceived) -> None:
    """This node goes away, on purpose: the others re-form without it at once."""
    seat = turn.state.assignment
    assert seat is not None
    reason = f"node {turn.state.host or seat.node_id} was stopped by {signal_name(-event.number)}"
    end = RoundEnd(
        seat.round_number,
        Cause.NODE_LEFT,
        Verdict.RESCALE,
        reason,
        node_id=seat.node_id,
        host=turn.state.host,
        restart_count=seat.restart_count,
        lost=(seat.node_id,),
        lost_ranks=(seat.group_rank,),
    )
    turn.tell(EndRound(end))
    _stop(turn, reason, event.number, turn.state.grace.preemption, proposed=end, signal_number=event.number)


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
    RoundJoined: {Phase.JOINING: _joined},
    StandingBy: {Phase.JOINING: _standing_by},
    WorkersExited: {Phase.RUNNING: _exited, Phase.STOPPING: _exited},
    StartFailed: {Phase.RUNNING: _start_failed},
    Diagnosed: {Phase.RUNNING: _diagnosed, Phase.STOPPING: _diagnosed},
    WorkersGone: {Phase.STOPPING: _gone},
    RoundEnded: {Phase.RUNNING: _ended, Phase.BARRIER: _ended, Phase.STOPPING: _note_end},
    JobClosed: {
        Phase.JOINING: _closed_while_joining,
        Phase.RUNNING: _ended,
        Phase.BARRIER: _ended,
        Phase.STOPPING: _note_end,
    },
    RendezvousFailed: {
        Phase.JOINING: _failed_while_joining,
        Phase.RUNNING: _trouble,
        Phase.BARRIER: _barrier_trouble,
        Phase.STOPPING: _note_trouble,
    },
    SignalReceived: {
        Phase.JOINING: _signal_while_joining,
        Phase.RUNNING: _signal,
        Phase.BARRIER: _signal,
        Phase.STOPPING: _signal_while_stopping,
    },
    Clock: {Phase.BARRIER: _barrier_is_over, Phase.STOPPING: _waited_enough},
}
