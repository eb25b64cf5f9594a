"""An agent's machine and live workers: released, kept, stopped before the run ends."""

from __future__ import annotations

import pytest
from attrs import evolve
from core.tests.agent_script import ASSIGNMENT, FAILURE, HUNG, Script, ended, exited, outcome_of
from core.tests.idle_context import IdleContext

from quorate.agent import _protocol as p
from quorate.agent._guarded_context import GuardedContext
from quorate.agent._processes import Processes
from quorate.errors import FailureKind
from quorate.records import (
    Cause,
    RestartDecision,
    RoundEnd,
    Verdict,
    WorkerExited,
    WorkerLaunch,
)

# --- live workers ----------------------------------------------------------------------------------------------------

RELEASE = p.ReleaseWorkers(15, 5.0, 2.0)


KEPT = frozenset({0})


def released(end: RoundEnd | None = None) -> Script:
    """Return a script in which local rank 1 has failed and local rank 0 waits, at the recorded ``end`` if there is."""
    script = Script(release=2.0).running()
    script.feed(exited(1, 1))
    assert script.feed(p.Diagnosed(FAILURE, RestartDecision(Verdict.RESTART)))[-1] == RELEASE
    if end is not None:
        script.feed(p.RoundEnded(end) if not end.verdict.is_terminal else p.JobClosed(end))
    return script


def test_the_others_of_a_failed_worker_are_released_and_told_the_next_assignment() -> None:
    script = released()
    assert script.feed(p.WorkersGone(KEPT)) == ()  # the recorded end is not known yet
    assert script.feed(p.RoundEnded(ended(Verdict.RESTART))) == (p.CheckNode(),)
    assert script.feed(p.NodeChecked()) == (p.JoinRound(),)
    assert script.feed(p.RoundJoined(ASSIGNMENT)) == (p.StartWorkers(ASSIGNMENT, KEPT),)
    assert script.state.kept == frozenset()


def test_a_live_worker_that_ends_while_it_waits_is_started_anew() -> None:
    script = released(ended(Verdict.RESTART))
    script.feed(p.WorkersGone(KEPT))
    script.feed(p.NodeChecked())
    assert script.feed(exited(0, 1)) == ()
    assert script.feed(p.RoundJoined(ASSIGNMENT)) == (p.StartWorkers(ASSIGNMENT),)


@pytest.mark.parametrize(
    ("event", "outcome", "stop"),
    [
        (p.JobClosed(ended(Verdict.FAILED)), p.Outcome.CLOSED, p.StopWorkers(15, 8.0)),
        (p.RendezvousFailed(FailureKind.LOST, "gone"), p.Outcome.ERROR, p.StopWorkers(15, 8.0)),
        (p.NodeUnhealthy("its disk is full"), p.Outcome.UNHEALTHY, p.StopWorkers(15, 8.0)),
        (p.SignalReceived(2), p.Outcome.SIGNAL, p.StopWorkers(2, 7.0)),
    ],
)
def test_live_workers_that_wait_in_vain_are_stopped_before_the_run_ends(
    event: p.Input, outcome: p.Outcome, stop: p.StopWorkers
) -> None:
    script = released(ended(Verdict.RESTART))
    script.feed(p.WorkersGone(KEPT))
    script.feed(p.NodeChecked())
    assert script.feed(event)[-1] == stop
    assert script.state.phase is p.Phase.STOPPING
    script.feed(exited(0, -15, stopped=True))
    assert outcome_of(script.feed(p.WorkersGone())[-1])[0] is outcome


def test_a_signal_while_live_workers_are_stopped_decides_and_a_persons_second_interrupt_kills_them() -> None:
    script = released(ended(Verdict.RESTART))
    script.feed(p.WorkersGone(KEPT))
    script.feed(p.RendezvousFailed(FailureKind.LOST, "gone"))
    assert script.feed(p.SignalReceived(15)) == (p.StopWorkers(15, 7.0),)
    assert script.feed(p.SignalReceived(15)) == script.feed(p.SignalReceived(2, is_person=True)) == ()
    script.now += 1.0
    assert script.feed(p.SignalReceived(2, is_person=True)) == (p.StopWorkers(9, 0.0),)
    assert outcome_of(script.feed(p.WorkersGone())[-1])[0] is p.Outcome.SIGNAL


def test_where_the_recorded_end_is_the_jobs_released_workers_are_stopped_first() -> None:
    script = released(ended(Verdict.FAILED))
    assert script.feed(p.WorkersGone(KEPT)) == (p.StopWorkers(15, 8.0),)
    assert outcome_of(script.feed(p.WorkersGone())[-1]) == (p.Outcome.FAILED, "the recorded reason (failed)")


def test_a_victims_others_are_released_while_the_cause_is_waited_for() -> None:
    script = Script(loss=4.0, release=2.0).running()
    script.feed(exited(1, 1))
    victim = evolve(FAILURE, cause=Cause.BROKEN_COLLECTIVE)
    assert script.feed(p.Diagnosed(victim, RestartDecision(Verdict.FAILED))) == (evolve(RELEASE, grace_seconds=8.0),)
    script.feed(p.WorkersGone(KEPT))
    assert script.feed(p.RoundEnded(ended(Verdict.RESCALE, Cause.NODE_LOST))) == (p.CheckNode(),)
    assert script.state.kept == KEPT


def test_a_hung_worker_is_not_released_but_the_others_are() -> None:
    script = Script(release=2.0).running()
    script.feed(HUNG)
    script.feed(p.StacksDumped())
    commands = script.feed(p.Diagnosed(evolve(FAILURE, cause=Cause.HANG), RestartDecision(Verdict.RESTART)))
    assert commands[-1] == p.ReleaseWorkers(15, 5.0, 2.0, given_up=HUNG.local_rank)


@pytest.mark.parametrize("event", [p.JobClosed(ended(Verdict.FAILED)), p.SignalReceived(15), p.NodeUnhealthy("disk")])
def test_workers_that_no_round_can_follow_are_stopped_at_once(event: p.Input) -> None:
    script = Script(release=2.0).running()
    assert isinstance(script.feed(event)[-1], p.StopWorkers)


# --- what the contexts report while a round begins -------------------------------------------------------------------


class Released(IdleContext):
    """Its workers were released; one that has ended is reported a moment later."""

    def __init__(self, *pids: int) -> None:
        super().__init__()
        self.workers = dict(enumerate(pids))
        self.waiting = list(self.workers)
        self.exits: list[WorkerExited] = []

    def advance(self, now: float) -> list[WorkerExited]:
        exits, self.exits = self.exits, []
        return exits

    def pids(self) -> dict[int, int]:
        return self.workers

    def release(self, number: int, grace: float, seconds: float, given_up: object, now: float) -> None: ...

    def released(self) -> list[int]:
        return self.waiting

    def assign(self, launch: WorkerLaunch) -> None: ...


def test_a_worker_that_ends_just_before_its_next_round_is_replaced_and_not_taken_for_its_replacement() -> None:
    """The machine believes that it waits, since its end was not reported yet."""
    processes = Processes(lambda descriptor: None, lambda descriptor: None, lambda sentence: None)
    context, alone = Released(101, 102), Released(103)
    processes.add(GuardedContext("own", context))
    processes.add(GuardedContext("own", alone))
    context.waiting, alone.waiting = [1], []
    assert set(processes.begin()) == {1}
    assert alone.is_closed
    processes.add(GuardedContext("own", Released(201)))
    late, own = WorkerExited(0, 101, -9, 0), WorkerExited(0, 201, 1, 0)
    context.exits = [late, own]
    assert processes.advance() == [own]
