"""A script of inputs and commands for the machine of an agent.  No tests."""

from __future__ import annotations

from quorate.agent import _protocol as p
from quorate.agent._machine import TABLE, step
from quorate.agent._state import Settings, State
from quorate.records import (
    Assignment,
    Cause,
    FailureRecord,
    RoundEnd,
    Verdict,
    WorkerExited,
)

ASSIGNMENT = Assignment(3, "me", "default", 2, 0, 2, 0, 4, 0, 4, "10.0.0.1", 4711, restart_count=1)


FAILURE = FailureRecord(1, 1, 77, 1, Cause.EXCEPTION, "ValueError: no", 0, host="alpha")


def ended(verdict: Verdict, cause: Cause = Cause.EXCEPTION, restarts: int = 1) -> RoundEnd:
    return RoundEnd(3, cause, verdict, f"the recorded reason ({verdict.value})", restart_count=restarts)


class Script:
    """Feeds the machine and keeps what it said."""

    def __init__(self, max_restarts: int = 3, barrier: float = 300.0, loss: float = 0.0, release: float = 0.0) -> None:
        grace = p.Grace(5.0, 6.0, 7.0, 8.0)
        self.state = State(
            Settings(max_restarts, barrier, grace, host="alpha", loss_timeout=loss, release_timeout=release)
        )
        self.now = 0.0

    def feed(self, event: p.Input) -> tuple[p.Command, ...]:
        before = self.state.phase
        result = step(self.state, event, self.now)
        self.state = result.state
        if result.state.phase is not before:
            assert result.state.phase in TABLE[before][type(event)].targets, "the table does not list it"
        return result.commands

    def running(self) -> Script:
        self.feed(p.Begin())
        self.feed(p.NodeChecked())
        assert self.feed(p.RoundJoined(ASSIGNMENT)) == (p.StartWorkers(ASSIGNMENT),)
        return self


def exited(local_rank: int, code: int, stopped: bool = False) -> p.WorkersExited:
    return p.WorkersExited((WorkerExited(local_rank, 70 + local_rank, code, 0, stopped=stopped),))


def outcome_of(command: p.Command) -> tuple[p.Outcome, str]:
    assert isinstance(command, p.Finish)
    return command.outcome, command.reason


# --- hangs ------------------------------------------------------------------------------------------------------------

HUNG = p.WorkerHung(1, 71, "scope 'step' is 2 s over its time", 5)
