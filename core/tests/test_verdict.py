"""The job's verdict as text and as a file, and how each way to end becomes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quorate.agent import _protocol as p
from quorate.agent._state import Round, Settings, State
from quorate.agent._verdict import judge
from quorate.diagnosis import describe_signal
from quorate.errors import FailureKind
from quorate.records import Assignment, Cause, FailureRecord, RoundEnd, Verdict, evolve
from quorate.verdict import FILE_NAME, JobState, JobVerdict, LiveRound

ASSIGNMENT = Assignment(1, "me", "default", 2, 0, 2, 0, 4, 0, 4, "10.0.0.1", 4711, restart_count=1)
FAILURE = FailureRecord(
    5, 1, 77, 1, Cause.EXCEPTION, "ValueError: no", 1_700_000_000_123_456_789, node_id="0123456789", host="alpha"
)
ROUNDS = (
    RoundEnd(
        0, Cause.SIGNAL, Verdict.RESTART, "rank 0 failed", rank=0, restart_count=1, delay_seconds=0.75, failure=FAILURE
    ),
    RoundEnd(1, Cause.NODE_LOST, Verdict.RESCALE, "group rank 1 is lost", restart_count=1),
    RoundEnd(2, Cause.EXCEPTION, Verdict.FAILED, "no more", rank=5, host="alpha", restart_count=1, failure=FAILURE),
)


def verdict(**changes: Any) -> JobVerdict:
    values: dict[str, Any] = {"first_cause": FAILURE, "rounds": ROUNDS, "restarts_used": 1, "restarts_allowed": 3}
    return JobVerdict("job", "0123", "beta", JobState.FAILED, Cause.EXCEPTION, "no more", **{**values, **changes})


def test_the_report_has_the_cause_then_the_history() -> None:
    assert verdict().report("train.py").splitlines() == [
        "train.py failed",
        "no more",
        "root cause:",
        "  rank 5 (local rank 1) on alpha (node 01234567): exit code 1, pid 77",
        "  cause exception, attempt 0, at 2023-11-14 22:13:20.123456789 UTC",
        "  ValueError: no",
        "history:",
        "  round 0: signal of rank 5 -> restart 1 of 3 after 0.8 s",
        "  round 1: node_lost (group rank 1 is lost) -> a new round, at no cost",
        "  round 2: exception of rank 5 on alpha -> the job failed",
    ]


def test_who_was_missed_afterwards_stands_below_its_round() -> None:
    rounds = (evolve(ROUNDS[0], missing=("group rank 1 (gamma) was lost",)), *ROUNDS[1:])
    lines = list(verdict(rounds=rounds).details())
    at = lines.index("  round 0: signal of rank 5 -> restart 1 of 3 after 0.8 s")
    assert lines[at + 1] == "    group rank 1 (gamma) was lost in that round: probably its root cause"


def test_what_only_this_node_knows_stands_apart_and_last() -> None:
    victims = tuple(evolve(FAILURE, rank=rank, cause=Cause.BROKEN_COLLECTIVE) for rank in range(20))
    lines = list(verdict(victims=victims).details())
    at = lines.index("on beta, failed after the root cause:")
    assert lines[:at] == list(verdict().details()), "what comes before is the same on every node"
    assert lines[at + 1] == "  rank 0 (local rank 1): broken_collective, exit code 1, pid 77"
    assert lines[-1] == "  and 4 more"


def test_a_long_history_is_cut_and_a_late_one_says_so() -> None:
    rounds = tuple(evolve(ROUNDS[1], round_number=number) for number in range(500))
    lines = list(verdict(rounds=rounds, first_cause=None).details())
    assert len(lines) < 25
    assert "round 499" in lines[-1]
    assert "rounds before 480" in lines[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exit_code": -11}, "killed by SIGSEGV, pid 77 (invalid memory access in native code)"),
        ({"exit_code": -9, "cause": Cause.OUT_OF_MEMORY}, "killed by the kernel, out of memory, pid 77"),
        ({"exit_code": -9, "cause": Cause.HANG}, "hung, pid 77"),
        ({"exit_code": 127, "cause": Cause.START_FAILED, "pid": 0}, "could not be started"),
        ({"exit_code": -60, "cause": Cause.SIGNAL}, "killed by signal 60, pid 77"),
    ],
)
def test_how_a_worker_ended(change: dict[str, Any], words: str) -> None:
    lines = list(verdict(first_cause=evolve(FAILURE, **change)).details())
    assert lines[1].endswith(words)


def test_a_signal_has_a_meaning() -> None:
    assert "killed" in describe_signal(-9)
    assert describe_signal(9) == ""
    assert describe_signal(-60) == ""


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    trace = {"message": {"message": "ValueError: no", "extraInfo": {"py_callstack": "Traceback ..."}}}
    failure = evolve(FAILURE, exit_code=-9, error_data=trace, stderr_tail=tuple(f"line {n}" for n in range(30)))
    live = LiveRound(1, (70, 72), (80,), 0.083)
    verdict(first_cause=failure, victims=(FAILURE,), live_rounds=(live,)).write(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    data = json.loads((tmp_path / FILE_NAME).read_text())
    assert (data["state"], data["cause"], data["restarts"]) == ("failed", "exception", {"used": 1, "allowed": 3})
    assert data["first_cause"]["traceback"] == "Traceback ..."
    assert data["first_cause"]["signal"]["name"] == "SIGKILL"
    assert data["first_cause"]["stderr"] == [f"line {n}" for n in range(10, 30)]
    assert [end["verdict"] for end in data["rounds"]] == ["restart", "rescale", "failed"]
    assert len(data["this_node"]["victims"]) == 1
    told = {"round": 1, "kept": [70, 72], "started": [80], "pause_seconds": 0.083}
    assert data["this_node"]["live_rounds"] == [told]


def test_a_later_verdict_replaces_an_earlier_one(tmp_path: Path) -> None:
    verdict().write(str(tmp_path))
    verdict(rounds=()).write(str(tmp_path))
    assert json.loads((tmp_path / FILE_NAME).read_text())["rounds"] == []


def test_where_it_cannot_be_written_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(OSError, match=FILE_NAME):
        verdict().write(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    with pytest.raises(OSError, match="absent"):
        verdict().write(str(tmp_path / "absent"))


# --- how each way to end becomes one --------------------------------------------------------------------------------


OVER = p.RoundIsOver()


def verdict_on(
    outcome: p.Outcome,
    why: p.StopReason = OVER,
    end: RoundEnd | None = ROUNDS[2],
    failures: tuple[FailureRecord, ...] = (),
) -> JobVerdict:
    state = State(
        Settings(3, 300.0, host="beta"),
        history=ROUNDS[:2],
        round=Round(ASSIGNMENT, failures=failures),
        finish=p.Finish(outcome, "why", why, end),
    )
    return judge(state, "job", "me")


def lost(kind: FailureKind) -> dict[str, Any]:
    return {"why": p.RendezvousIsLost(p.RendezvousFailed(kind, "x"))}


@pytest.mark.parametrize(
    ("outcome", "changes", "expected"),
    [
        (p.Outcome.FAILED, {}, (JobState.FAILED, Cause.EXCEPTION)),
        (p.Outcome.CLOSED, {}, (JobState.FAILED, Cause.EXCEPTION)),
        (p.Outcome.CLOSED, {"end": evolve(ROUNDS[2], verdict=Verdict.STOPPED)}, (JobState.STOPPED, Cause.EXCEPTION)),
        (p.Outcome.SUCCEEDED, {"end": None}, (JobState.SUCCEEDED, Cause.SUCCEEDED)),
        (p.Outcome.SIGNAL, {"why": p.AgentSignalled(15)}, (JobState.STOPPED, Cause.STOPPED)),
        (p.Outcome.UNHEALTHY, {"why": p.NodeIsUnhealthy("disk")}, (JobState.UNHEALTHY, Cause.UNHEALTHY)),
        (p.Outcome.ERROR, lost(FailureKind.LOST), (JobState.STORE_LOST, Cause.STORE_LOST)),
        (p.Outcome.ERROR, lost(FailureKind.UNAVAILABLE), (JobState.STORE_LOST, Cause.STORE_LOST)),
        (p.Outcome.ERROR, lost(FailureKind.TIMEOUT), (JobState.NO_ROUND, Cause.TOO_FEW_NODES)),
        (p.Outcome.ERROR, lost(FailureKind.STATE), (JobState.NO_ROUND, Cause.CONFIGURATION)),
    ],
)
def test_each_way_to_end(outcome: p.Outcome, changes: dict[str, Any], expected: tuple[JobState, Cause]) -> None:
    result = verdict_on(outcome, **changes)
    assert (result.state, result.cause) == expected
    assert result.rounds[:2] == ROUNDS[:2]
    assert (result.restarts_used, result.restarts_allowed) == (1, 3)
    json.dumps(result.to_json())


def test_the_recorded_cause_is_no_victim_although_it_was_cut_on_its_way() -> None:
    here = evolve(FAILURE, message="ValueError: no" + "!" * 99_999)
    victim = evolve(FAILURE, rank=4, cause=Cause.BROKEN_COLLECTIVE)
    result = verdict_on(p.Outcome.FAILED, failures=(victim, here))
    assert result.first_cause == FAILURE
    assert result.victims == (victim,)
