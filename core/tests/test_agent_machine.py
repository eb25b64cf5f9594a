"""The agent's machine: each promise as a short script of inputs and expected commands, then any sequence at all."""

from __future__ import annotations

import pytest
from attrs import evolve
from core.tests.agent_script import ASSIGNMENT, FAILURE, HUNG, Script, ended, exited, outcome_of
from hypothesis import given, strategies as st

from quorate.agent import _protocol as p
from quorate.errors import FailureKind
from quorate.records import (
    Cause,
    RestartDecision,
    Verdict,
    WorkerExited,
)


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


# --- any sequence ---------------------------------------------------------------------------------------------------

EVENTS: st.SearchStrategy[p.Input] = st.one_of(
    st.just(p.Begin()),
    st.just(p.RoundJoined(ASSIGNMENT)),
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
