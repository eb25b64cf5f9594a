"""An agent's machine and what goes wrong: victims of other failures, unhealthy nodes, hangs, repeats."""

from __future__ import annotations

import pytest
from attrs import evolve
from core.tests.agent_script import ASSIGNMENT, FAILURE, HUNG, Script, ended, exited, outcome_of

from quorate.agent import _protocol as p
from quorate.errors import FailureKind
from quorate.policy import default_restart
from quorate.records import (
    Assignment,
    Cause,
    RestartBudget,
    RestartDecision,
    Verdict,
    WorkerExited,
)

# --- victims of another worker's failure ------------------------------------------------------------------------------

VICTIM = evolve(FAILURE, cause=Cause.BROKEN_COLLECTIVE, message="RuntimeError: Connection closed by peer")


def with_victim(decision: RestartDecision, assignment: Assignment = ASSIGNMENT) -> Script:
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
    script = with_victim(RestartDecision(Verdict.RESTART), evolve(ASSIGNMENT, group_world_size=1, world_size=2))
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
    script.feed(p.RoundJoined(evolve(ASSIGNMENT, round_number=4, missing=("group rank 1 was lost",))))
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
    assert end.restart_count == ASSIGNMENT.restart_count, "it costs no restart"
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
        script.feed(p.RoundJoined(ASSIGNMENT))
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
