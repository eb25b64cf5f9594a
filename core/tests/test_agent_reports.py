"""What the agent tells: each round's end once, whatever comes first, the end or the last worker's death."""

from __future__ import annotations

import pytest
from attrs import evolve

from quorate import PluginHost, hookimpl
from quorate.agent import _protocol as p
from quorate.agent._machine import step
from quorate.agent._reports import Reporter
from quorate.agent._state import Settings, State
from quorate.agent._workers import WorkerTable
from quorate.records import Assignment, Cause, Event, FailureRecord, RestartDecision, RoundEnd, Verdict, WorkerLaunch
from quorate.verdict import LiveRound

ASSIGNMENT = Assignment(0, "me", "default", 1, 0, 1, 0, 1, 0, 1, "10.0.0.1", 4711)
FAILURE = FailureRecord(0, 0, 7, 1, Cause.EXIT_CODE, "exit code 1", 0)
END = RoundEnd(0, Cause.EXIT_CODE, Verdict.RESTART, "rank 0 failed", restart_count=1)


class Listener:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    @hookimpl
    def quorate_observe_event(self, event: Event) -> None:
        self.heard.append(event)


@pytest.mark.parametrize(
    "last_of_round_0",
    [(p.RoundEnded(END), p.WorkersGone()), (p.WorkersGone(), p.RoundEnded(END))],
    ids=["the end first", "the workers first"],
)
def test_each_end_is_told_once(last_of_round_0: tuple[p.Input, ...], capsys: pytest.CaptureFixture[str]) -> None:
    listener = Listener()
    reporter = Reporter(PluginHost(paths=[], extra=[("listener", listener)]), None)
    state = State(Settings(3, 300.0))
    second = evolve(END, round_number=1, reason="node b joined", verdict=Verdict.RESCALE)
    round_0 = (
        p.NodeChecked(),
        p.RoundJoined(ASSIGNMENT),
        p.Diagnosed(FAILURE, RestartDecision(Verdict.RESTART)),
        *last_of_round_0,
    )
    round_1 = (
        p.NodeChecked(),
        p.RoundJoined(evolve(ASSIGNMENT, round_number=1)),
        p.RoundEnded(second),
        p.WorkersGone(),
    )
    for event in (p.Begin(), *round_0, *round_1):
        old, state = state, step(state, event, 0.0).state
        reporter.changed(old, state)
    told = [event.reason for event in listener.heard if event.name == "round.ended"]
    assert told == [
        "round 0 ended (exit_code -> restart): rank 0 failed",
        "round 1 ended (exit_code -> rescale): node b joined",
    ]
    assert [line for line in capsys.readouterr().err.splitlines() if " ended " in line] == [
        f"quorate: {sentence}" for sentence in told
    ]


def test_what_workers_were_bound_to_is_told_and_shown() -> None:
    listener, table = Listener(), WorkerTable()
    reporter = Reporter(PluginHost(paths=[], extra=[("listener", listener)]), None)
    bound = WorkerLaunch(0, 4, "t", "true", (), {}, "", cpus=frozenset({0, 1, 2, 8}))
    launches = [bound, evolve(bound, local_rank=1, rank=5, cpus=None)]
    reporter.started({0: 70, 1: 71}, launches)
    table.started(launches, {0: 70, 1: 71})
    (event,) = listener.heard
    assert (event.details["pids"], event.details["cpus"]) == ((70, 71), ("0-2,8", ""))
    assert [worker.cpus for worker in table.workers] == ["0-2,8", ""]


def test_a_worker_without_a_cpu_cannot_be_launched() -> None:
    with pytest.raises(ValueError, match="cpus"):
        WorkerLaunch(0, 0, "t", "true", (), {}, "", cpus=frozenset())


def test_who_lives_on_is_told_and_kept_for_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    listener = Listener()
    reporter = Reporter(PluginHost(paths=[], extra=[("listener", listener)]), None)
    launches = [WorkerLaunch(rank, rank, "t", "true", (), {}, "") for rank in range(3)]
    reporter.started({0: 70, 1: 71, 2: 72}, launches)
    assert not reporter.live_rounds
    reporter.stopping()
    reporter.started({0: 70, 1: 80, 2: 72}, launches, kept=frozenset({0, 2}), round_number=4)
    details = listener.heard[-1].details
    assert (details["pids"], details["kept"]) == ((70, 80, 72), (70, 72))
    (live,) = reporter.live_rounds
    assert live == LiveRound(4, (70, 72), (80,), details["pause_seconds"])
    assert "2 worker(s) live on (pid 70, 72), 1 started; the pause was" in capsys.readouterr().err
