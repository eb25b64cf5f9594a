"""The agent's machine: each promise as a short script of inputs and expected commands, then any sequence at all."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from quorate.agent import _protocol as p
from quorate.agent._machine import TABLE, initial_state, step
from quorate.errors import FailureKind
from quorate.policy import default_restart
from quorate.records import (
    Assignment,
    Cause,
    FailureRecord,
    RestartBudget,
    RestartDecision,
    RoundEnd,
    Verdict,
    WorkerExited,
)

SEAT = Assignment(3, "me", "default", 2, 0, 2, 0, 4, 0, 4, "10.0.0.1", 4711, restart_count=1)
FAILURE = FailureRecord(1, 1, 77, 1, Cause.EXCEPTION, "ValueError: no", 0, host="alpha")


def ended(verdict: Verdict, cause: Cause = Cause.EXCEPTION, restarts: int = 1) -> RoundEnd:
    return RoundEnd(3, cause, verdict, f"the recorded reason ({verdict.value})", restart_count=restarts)


class Script:
    """Feeds the machine and keeps what it said."""

    def __init__(self, max_restarts: int = 3, barrier: float = 300.0, loss: float = 0.0, release: float = 0.0) -> None:
        grace = p.Grace(5.0, 6.0, 7.0, 8.0)
        self.state = initial_state(
            max_restarts, barrier, grace, host="alpha", loss_timeout=loss, release_timeout=release
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
        assert self.feed(p.RoundJoined(SEAT)) == (p.StartWorkers(SEAT),)
        return self


def exited(local_rank: int, code: int, stopped: bool = False) -> p.WorkersExited:
    return p.WorkersExited((WorkerExited(local_rank, 70 + local_rank, code, 0, stopped=stopped),))


def outcome_of(command: p.Command) -> tuple[p.Outcome, str]:
    assert isinstance(command, p.Finish)
    return command.outcome, command.reason


def test_a_run_begins_with_a_check_of_the_node_and_a_join() -> None:
    script = Script()
    assert script.feed(p.Begin()) == (p.CheckNode(),)
    assert script.feed(p.NodeChecked()) == (p.JoinRound(),)


def test_success_waits_for_the_others_and_finishes_with_the_recorded_reason() -> None:
    """Inside the barrier's time-out."""
    script = Script().running()
    assert script.feed(exited(0, 0)) == ()
    assert script.feed(exited(1, 0)) == (p.ReportDone(),)
    assert script.state.phase is p.Phase.BARRIER
    assert script.feed(p.JobClosed(ended(Verdict.SUCCEEDED))) == (p.StopWorkers(15, 8.0),)
    (finish,) = script.feed(p.WorkersGone())
    assert outcome_of(finish) == (p.Outcome.SUCCEEDED, "the recorded reason (succeeded)")


def test_a_barrier_of_zero_does_not_wait() -> None:
    """Time-out 0."""
    script = Script(barrier=0.0).running()
    script.feed(exited(0, 0))
    assert script.feed(exited(1, 0)) == (p.ReportDone(), p.Leave(), p.StopWorkers(15, 8.0))
    (finish,) = script.feed(p.WorkersGone())
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.SUCCEEDED


def test_the_barrier_ends_at_its_timeout() -> None:
    script = Script(barrier=10.0).running()
    script.feed(exited(0, 0))
    script.feed(exited(1, 0))
    script.now = 10.0
    assert script.state.wake_at == 10.0
    assert script.feed(p.Clock(due=True)) == (p.Leave(), p.StopWorkers(15, 8.0))


def test_trouble_in_the_barrier_does_not_fail_workers_that_succeeded() -> None:
    script = Script().running()
    script.feed(exited(0, 0))
    script.feed(exited(1, 0))
    script.feed(p.RendezvousFailed(FailureKind.LOST, "the store is gone"))
    (finish,) = script.feed(p.WorkersGone())
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.SUCCEEDED


def test_trouble_that_overtakes_the_last_success_does_not_undo_it() -> None:
    """The workers had ended well before the store was lost, the agent only learns it in the other order."""
    script = Script().running()
    script.feed(exited(0, 0))
    assert script.feed(p.RendezvousFailed(FailureKind.LOST, "the store is gone")) == (p.StopWorkers(15, 8.0),)
    script.feed(exited(1, 0))
    (finish,) = script.feed(p.WorkersGone())
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.SUCCEEDED


def test_a_worker_that_obeys_the_stop_has_not_succeeded() -> None:
    script = Script().running()
    script.feed(exited(0, 0))
    script.feed(p.RendezvousFailed(FailureKind.LOST, "the store is gone"))
    script.feed(exited(1, 0, stopped=True))
    (finish,) = script.feed(p.WorkersGone())
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.ERROR


def test_a_failure_is_diagnosed_recorded_and_the_group_stopped() -> None:
    """The restart is counted for the job."""
    script = Script().running()
    (diagnose,) = script.feed(exited(1, 1))
    assert isinstance(diagnose, p.Diagnose)
    assert diagnose.budget is not None
    assert (diagnose.budget.used, diagnose.budget.allowed) == (1, 3)
    end_round, stop = script.feed(p.Diagnosed(FAILURE, RestartDecision(Verdict.RESTART, "restart 2 of 3", 0.5)))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.restart_count == 2
    assert end_round.end.delay_seconds == 0.5
    assert (
        end_round.end.reason
        == "rank 1 (local rank 1) on alpha failed: ValueError: no; restart 2 of 3, after a pause of 0.5 s"
    )
    assert stop == p.StopWorkers(15, 5.0)
    assert script.feed(p.WorkersGone()) == ()  # the recorded end is not known yet
    assert script.feed(p.RoundEnded(ended(Verdict.RESTART))) == (p.CheckNode(),)
    assert script.feed(p.NodeChecked()) == (p.JoinRound(),)


def test_what_was_recorded_counts_and_not_what_was_proposed() -> None:
    """First writer wins: this node wanted to fail the job, another one had restarted it before."""
    script = Script().running()
    script.feed(exited(1, 1))
    script.feed(p.Diagnosed(FAILURE, RestartDecision(Verdict.FAILED)))
    script.feed(p.RoundEnded(ended(Verdict.RESCALE, Cause.NODE_LOST)))
    assert script.feed(p.WorkersGone()) == (p.CheckNode(),)


def test_without_an_answer_the_proposal_counts_after_a_while() -> None:
    script = Script().running()
    script.feed(exited(1, 1))
    script.feed(p.Diagnosed(FAILURE, RestartDecision(Verdict.FAILED, "no")))
    script.feed(p.WorkersGone())
    script.now = script.state.wake_at or 0.0
    (finish,) = script.feed(p.Clock(due=True))
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.FAILED


def test_the_end_of_another_nodes_making_stops_the_workers_with_the_grace_of_its_cause() -> None:
    for verdict, grace in ((Verdict.RESTART, 5.0), (Verdict.RESCALE, 6.0)):
        script = Script().running()
        assert script.feed(p.RoundEnded(ended(verdict))) == (p.StopWorkers(15, grace),)
        assert script.feed(exited(0, -15, stopped=True)) == ()
        assert script.feed(p.WorkersGone()) == (p.CheckNode(),)


def test_a_restart_reaches_nodes_that_wait_in_the_barrier() -> None:
    script = Script().running()
    script.feed(exited(0, 0))
    script.feed(exited(1, 0))
    script.feed(p.RoundEnded(ended(Verdict.RESTART)))
    assert script.feed(p.WorkersGone()) == (p.CheckNode(),)
    assert script.state.round is None


def test_victims_of_the_stop_are_not_diagnosed_and_late_failures_only_noted() -> None:
    script = Script().running()
    script.feed(exited(1, 1))
    script.feed(p.Diagnosed(FAILURE, RestartDecision(Verdict.FAILED)))
    assert script.feed(exited(0, -15, stopped=True)) == ()
    (noted,) = script.feed(exited(0, 1))
    assert noted == p.Diagnose(WorkerExited(0, 70, 1, 0), None)


def test_a_signal_leaves_the_job_with_grace_and_those_that_follow_change_nothing() -> None:
    script = Script().running()
    end_round, stop = script.feed(p.SignalReceived(2))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.cause is Cause.NODE_LEFT
    assert end_round.end.verdict is Verdict.RESCALE
    assert stop == p.StopWorkers(2, 7.0)
    script.now += 60.0
    assert script.feed(p.SignalReceived(2)) == script.feed(p.SignalReceived(15)) == ()
    leave, finish = script.feed(p.WorkersGone())
    assert leave == p.Leave()
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.SIGNAL


@pytest.mark.parametrize(("seconds", "ends"), [(0.1, False), (0.6, True)])
@pytest.mark.parametrize("before", [(), (15,)])
def test_a_persons_second_interrupt_a_moment_later_ends_the_grace(
    before: tuple[int, ...], seconds: float, ends: bool
) -> None:
    """Whatever else was received before the first; keys bounce, so one at once does not count."""
    script = Script().running()
    for number in before:
        script.feed(p.SignalReceived(number))
    script.now += 10.0
    script.feed(p.SignalReceived(2, is_person=True))
    script.now += seconds
    assert script.feed(p.SignalReceived(2, is_person=True)) == ((p.StopWorkers(9, 0.0),) if ends else ())


def test_a_signal_before_the_first_round_leaves_at_once() -> None:
    script = Script()
    script.feed(p.Begin())
    leave, finish = script.feed(p.SignalReceived(15))
    assert leave == p.Leave()
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.SIGNAL


def test_a_signal_while_stopping_makes_it_the_last_stop() -> None:
    script = Script().running()
    script.feed(p.RoundEnded(ended(Verdict.RESTART)))
    assert script.feed(p.SignalReceived(15)) == (p.StopWorkers(15, 7.0),)
    assert isinstance(script.feed(p.WorkersGone())[-1], p.Finish)
    assert script.state.phase is p.Phase.FINISHED


def test_a_lost_store_stops_the_workers_and_is_an_error() -> None:
    script = Script().running()
    assert script.feed(p.RendezvousFailed(FailureKind.LOST, "gone")) == (p.StopWorkers(15, 8.0),)
    (finish,) = script.feed(p.WorkersGone())
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.ERROR


def test_a_job_that_has_ended_is_not_joined() -> None:
    script = Script()
    script.feed(p.Begin())
    (finish,) = script.feed(p.JobClosed(ended(Verdict.FAILED)))
    assert isinstance(finish, p.Finish)
    assert finish.outcome is p.Outcome.CLOSED


def test_workers_that_cannot_start_are_diagnosed_as_such() -> None:
    script = Script().running()
    (diagnose,) = script.feed(p.StartFailed(WorkerExited(0, 0, 127, 0, problem="no such command")))
    assert isinstance(diagnose, p.Diagnose)
    assert diagnose.start_failed


# --- victims of another worker's failure ------------------------------------------------------------------------------

VICTIM = evolve(FAILURE, cause=Cause.BROKEN_COLLECTIVE, message="RuntimeError: Connection closed by peer")


def with_victim(decision: RestartDecision, assignment: Assignment = SEAT) -> Script:
    """A script whose worker failed over a broken connection; nothing is recorded yet."""
    script = Script(loss=4.0)
    script.feed(p.Begin())
    script.feed(p.NodeChecked())
    script.feed(p.RoundJoined(assignment))
    script.feed(exited(1, 1))
    (stop,) = script.feed(p.Diagnosed(VICTIM, decision))
    assert isinstance(stop, p.StopWorkers), "the workers are stopped at once"
    return script


def test_a_victim_lets_others_say_what_happened() -> None:
    """Also where no restart is left: losing a node costs none."""
    script = with_victim(RestartDecision(Verdict.FAILED))
    assert script.state.wake_at == 4.0
    assert script.feed(p.WorkersGone()) == ()
    assert script.state.wake_at == 4.0
    assert script.feed(p.RoundEnded(ended(Verdict.RESCALE, Cause.NODE_LOST))) == (p.CheckNode(),)
    assert script.state.history[-1].cause is Cause.NODE_LOST
    assert script.state.stopping is None


@pytest.mark.parametrize("gone_first", [True, False])
def test_what_a_victim_saw_is_recorded_when_nobody_knows_better(gone_first: bool) -> None:
    script = with_victim(RestartDecision(Verdict.RESTART, "restart 2 of 3"))
    if gone_first:
        script.feed(p.WorkersGone())
    script.now = 4.0
    (end_round,) = script.feed(p.Clock(due=True))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.cause is Cause.BROKEN_COLLECTIVE
    if not gone_first:
        script.feed(p.WorkersGone())
    assert script.state.wake_at == 4.0 + script.state.settings.close_timeout
    assert script.feed(p.RoundEnded(end_round.end)) == (p.CheckNode(),)


def test_a_failure_of_this_node_that_comes_to_light_is_recorded_instead() -> None:
    script = with_victim(RestartDecision(Verdict.RESTART))
    real = evolve(FAILURE, rank=0, local_rank=0)
    (decide,) = script.feed(p.Diagnosed(real, None))
    assert decide == p.Decide(real, RestartBudget(1, 3))
    (end_round,) = script.feed(p.Diagnosed(real, RestartDecision(Verdict.RESTART)))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.failure == real
    assert script.state.failures == (VICTIM, real)


def test_a_failure_that_comes_to_light_late_may_exclude_the_node_too() -> None:
    script = with_victim(RestartDecision(Verdict.RESTART))
    decision = RestartDecision(Verdict.RESTART, exclude_node=True)
    (end_round,) = script.feed(p.Diagnosed(evolve(FAILURE, rank=0, local_rank=0), decision))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.lost == ("me",)
    script.feed(p.RoundEnded(end_round.end))
    leave, finish = script.feed(p.WorkersGone())
    assert leave == p.Leave()
    assert outcome_of(finish)[0] is p.Outcome.UNHEALTHY


def test_a_recorded_end_leaves_nothing_to_wake_up_for() -> None:
    """The time for which a proposal was held back passes while the workers use their grace."""
    script = with_victim(RestartDecision(Verdict.RESTART))
    assert script.state.wake_at is not None
    script.feed(p.RoundEnded(ended(Verdict.RESCALE, Cause.NODE_LOST)))
    assert script.state.wake_at is None


def test_a_signal_leaves_a_held_back_end_to_be_recorded() -> None:
    script = with_victim(RestartDecision(Verdict.RESTART))
    assert script.feed(p.SignalReceived(15)) == (p.StopWorkers(15, 7.0),)
    script.now = 4.0
    (end_round,) = script.feed(p.Clock(due=True))
    assert isinstance(end_round, p.EndRound)
    assert outcome_of(script.feed(p.WorkersGone())[-1])[0] is p.Outcome.SIGNAL


def test_alone_a_victim_waits_for_what_came_to_light_with_it_and_no_longer() -> None:
    script = with_victim(RestartDecision(Verdict.RESTART), evolve(SEAT, group_world_size=1, world_size=2))
    assert script.state.wake_at == 0.0


def test_a_victim_of_a_lost_store_is_no_failure_of_the_job() -> None:
    script = with_victim(RestartDecision(Verdict.FAILED))
    script.feed(p.RendezvousFailed(FailureKind.LOST, "the store is gone"))
    (finish,) = script.feed(p.WorkersGone())
    assert outcome_of(finish)[0] is p.Outcome.ERROR


def test_the_history_learns_who_did_not_come_back() -> None:
    script = Script().running()
    script.feed(p.RoundEnded(ended(Verdict.RESTART)))
    script.feed(p.WorkersGone())
    script.feed(p.NodeChecked())
    script.feed(p.RoundJoined(evolve(SEAT, round_number=4, missing=("group rank 1 was lost",))))
    assert script.state.history[-1].missing == ("group rank 1 was lost",)


# --- the node's health ------------------------------------------------------------------------------------------------


def test_an_unhealthy_node_does_not_join() -> None:
    script = Script()
    script.feed(p.Begin())
    leave, finish = script.feed(p.NodeChecked(("disk: full", "memory: none")))
    assert leave == p.Decline("disk: full; memory: none")
    assert outcome_of(finish) == (p.Outcome.UNHEALTHY, "disk: full; memory: none")


def test_a_node_that_becomes_unhealthy_ends_the_round_without_itself_and_leaves() -> None:
    script = Script().running()
    end_round, stop = script.feed(p.NodeUnhealthy("disk: full"))
    assert isinstance(end_round, p.EndRound)
    end = end_round.end
    assert (end.cause, end.verdict, end.lost, end.lost_ranks) == (Cause.UNHEALTHY, Verdict.RESCALE, ("me",), (0,))
    assert end.reason == "node alpha is unhealthy: disk: full"
    assert end.restart_count == SEAT.restart_count, "it costs no restart"
    assert stop == p.StopWorkers(15, 7.0)
    script.feed(p.RoundEnded(end))
    leave, finish = script.feed(p.WorkersGone())
    assert leave == p.Leave()
    assert outcome_of(finish) == (p.Outcome.UNHEALTHY, "disk: full")


def test_a_node_that_becomes_unhealthy_while_it_waits_leaves() -> None:
    script = Script()
    script.feed(p.Begin())
    script.feed(p.NodeChecked())
    assert script.feed(p.NodeUnhealthy("disk: full"))[0] == p.Leave()
    assert script.state.phase is p.Phase.FINISHED


def test_a_node_whose_workers_have_succeeded_need_not_be_fit_any_more() -> None:
    script = Script().running()
    script.feed(exited(0, 0))
    script.feed(exited(1, 0))
    assert script.feed(p.NodeUnhealthy("disk: full")) == ()


def test_a_policy_may_exclude_the_node_of_a_failure() -> None:
    script = Script().running()
    script.feed(exited(1, 1))
    decision = RestartDecision(Verdict.RESTART, "restart 2 of 3", exclude_node=True)
    end_round, _ = script.feed(p.Diagnosed(FAILURE, decision))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.lost == ("me",)
    assert end_round.end.reason.endswith("restart 2 of 3; its node is excluded")
    script.feed(p.RoundEnded(end_round.end))
    leave, finish = script.feed(p.WorkersGone())
    assert leave == p.Leave()
    assert outcome_of(finish)[0] is p.Outcome.UNHEALTHY


# --- hangs ------------------------------------------------------------------------------------------------------------

HUNG = p.WorkerHung(1, 71, "scope 'step' is 2 s over its time", 5)


def test_a_hung_worker_first_leaves_its_stacks_then_ends_the_round() -> None:
    script = Script().running()
    assert script.feed(HUNG) == (p.DumpStacks(1),)
    assert script.feed(HUNG) == (), "once is enough"
    (diagnose,) = script.feed(p.StacksDumped())
    assert diagnose == p.Diagnose(WorkerExited(1, 71, -9, 5, problem=HUNG.problem), RestartBudget(1, 3), hung=True)
    failure = evolve(FAILURE, cause=Cause.HANG, message=HUNG.problem)
    end_round, stop = script.feed(p.Diagnosed(failure, RestartDecision(Verdict.RESTART)))
    assert isinstance(end_round, p.EndRound)
    assert end_round.end.cause is Cause.HANG
    assert end_round.end.reason == f"rank 1 (local rank 1) on alpha hangs: {HUNG.problem}"
    assert stop == p.StopWorkers(15, 5.0)


def test_workers_that_the_dump_has_ended_are_not_the_cause() -> None:
    script = Script().running()
    script.feed(HUNG)
    assert script.feed(exited(1, -6)) == ()
    (diagnose,) = script.feed(p.StacksDumped())
    assert isinstance(diagnose, p.Diagnose)
    assert diagnose.hung


def test_a_dump_that_does_not_end_is_not_waited_for() -> None:
    script = Script().running()
    script.feed(HUNG)
    script.now = script.state.wake_at or 0.0
    (diagnose,) = script.feed(p.Clock(due=True))
    assert isinstance(diagnose, p.Diagnose)
    assert diagnose.hung


def test_the_rounds_end_overtakes_a_dump() -> None:
    script = Script().running()
    script.feed(HUNG)
    script.feed(p.RoundEnded(ended(Verdict.RESTART)))
    assert script.feed(p.StacksDumped()) == ()
    script.feed(p.WorkersGone())
    assert script.state.round is None


def test_the_policy_is_told_of_repeats() -> None:
    """Rounds that only changed the world neither count nor interrupt the row."""
    script = Script().running()
    ends = [
        evolve(ended(Verdict.RESTART, Cause.SIGNAL), rank=0),
        evolve(ended(Verdict.RESTART), rank=1),
        ended(Verdict.RESCALE, Cause.NODE_JOINED),
        evolve(ended(Verdict.RESTART), rank=1),
    ]
    for end in ends:
        script.feed(p.RoundEnded(end))
        script.feed(p.WorkersGone())
        script.feed(p.NodeChecked())
        script.feed(p.RoundJoined(SEAT))
    (diagnose,) = script.feed(exited(1, 1))
    assert isinstance(diagnose, p.Diagnose)
    assert diagnose.budget is not None
    assert diagnose.budget.repeats_of(FAILURE) == 2
    assert diagnose.budget.repeats_of(evolve(FAILURE, rank=0)) == 0
    assert diagnose.budget.repeats_of(evolve(FAILURE, cause=Cause.HANG)) == 0


def test_a_failure_that_repeats_is_given_a_growing_pause() -> None:
    def delay(repeats: int) -> float:
        return default_restart(FAILURE, RestartBudget(1, 99, FAILURE.cause, FAILURE.rank, repeats)).delay_seconds

    assert delay(0) == 0.0
    assert 0.5 <= delay(1) <= 1.0
    assert 2.0 <= delay(3) <= 4.0
    assert 30.0 <= delay(1000) <= 60.0
    assert len({delay(1) for _ in range(8)}) > 1, "jitter"


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
    assert script.feed(p.RoundJoined(SEAT)) == (p.StartWorkers(SEAT, KEPT),)
    assert script.state.kept == frozenset()


def test_a_live_worker_that_ends_while_it_waits_is_started_anew() -> None:
    script = released(ended(Verdict.RESTART))
    script.feed(p.WorkersGone(KEPT))
    script.feed(p.NodeChecked())
    assert script.feed(exited(0, 1)) == ()
    assert script.feed(p.RoundJoined(SEAT)) == (p.StartWorkers(SEAT),)


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


# --- any sequence ---------------------------------------------------------------------------------------------------

EVENTS: st.SearchStrategy[p.Input] = st.one_of(
    st.just(p.Begin()),
    st.just(p.RoundJoined(SEAT)),
    st.sampled_from(Verdict).filter(lambda v: v.is_terminal).map(lambda v: p.JobClosed(ended(v))),
    st.sampled_from([Verdict.RESTART, Verdict.RESCALE]).map(lambda v: p.RoundEnded(ended(v))),
    st.just(p.RendezvousFailed(FailureKind.LOST, "gone")),
    st.tuples(st.integers(0, 1), st.sampled_from([0, 1, -9])).map(lambda pair: exited(*pair)),
    st.just(p.WorkersGone()),
    st.just(p.WorkersGone(frozenset({1}))),
    st.builds(p.SignalReceived, st.sampled_from([2, 15]), is_person=st.booleans()),
    st.just(p.Clock(due=True)),
    st.sampled_from([p.NodeChecked(), p.NodeChecked(("declined",)), p.NodeUnhealthy("declined")]),
    st.sampled_from([HUNG, p.StacksDumped()]),
)


CAUSES = st.sampled_from([Cause.EXCEPTION, Cause.BROKEN_COLLECTIVE])


@given(
    st.lists(EVENTS, max_size=40),
    st.sampled_from([0.0, 300.0]),
    st.sampled_from(list(Verdict)),
    st.booleans(),
    CAUSES,
    st.sampled_from([0.0, 5.0]),
)
def test_workers_never_outlive_their_round_and_the_agent_finishes_once(
    events: list[p.Input], barrier: float, verdict: Verdict, exclude: bool, cause: Cause, release: float
) -> None:
    """No start while workers may be left, no join or finish before they are gone, nothing after the finish.

    Live workers may wait meanwhile; they are told the next assignment, or stopped before the finish.
    """
    script = Script(barrier=barrier, loss=4.0, release=release)
    workers_may_be_left = finished = was_unhealthy = may_keep = False
    waiting = frozenset[int]()
    for event in events:
        if isinstance(event, p.WorkersGone):
            if script.state.phase is not p.Phase.STOPPING or (event.kept and not may_keep):
                continue  # the runner only says so after a stop, and keeps workers only after a release
            workers_may_be_left, waiting = False, event.kept
        if isinstance(event, p.WorkersExited):
            waiting -= {exit.local_rank for exit in event.exits}
        if isinstance(event, p.NodeUnhealthy) and script.state.phase not in (p.Phase.NEW, p.Phase.BARRIER):
            was_unhealthy = True
        backlog = [event]
        while backlog:
            for command in script.feed(backlog.pop(0)):
                assert not finished
                if isinstance(command, p.EndRound) and command.end.lost:
                    was_unhealthy = True
                if isinstance(command, p.StartWorkers):
                    assert not workers_may_be_left
                    assert command.kept == waiting
                    workers_may_be_left, waiting = True, frozenset()
                elif isinstance(command, p.StopWorkers):
                    may_keep, workers_may_be_left = False, workers_may_be_left or bool(waiting)
                    waiting = frozenset()
                elif isinstance(command, p.ReleaseWorkers):
                    may_keep = True
                elif isinstance(command, p.JoinRound):
                    assert not workers_may_be_left
                    assert not was_unhealthy
                elif isinstance(command, p.CheckNode):
                    backlog.append(p.NodeChecked())
                elif isinstance(command, p.Diagnose) and command.budget is not None:
                    failure = evolve(FAILURE, cause=cause)
                    backlog.append(p.Diagnosed(failure, RestartDecision(verdict, exclude_node=exclude)))
                elif isinstance(command, p.Finish):
                    assert not workers_may_be_left
                    assert not waiting
                    finished = True
    assert finished == (script.state.phase is p.Phase.FINISHED)
