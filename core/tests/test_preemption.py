"""A scheduler's warning: what the agent's machine makes of it, the deadline that workers read, and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

import quorate
from quorate.agent import _protocol as protocol
from quorate.agent._machine import step
from quorate.agent._preemption import Preemption
from quorate.agent._protocol import Outcome, Phase
from quorate.agent._services import View
from quorate.agent._state import Settings, State
from quorate.agent._stopping import SECOND_INTERRUPT_SECONDS
from quorate.cli._cluster import ThisMachine, requeue
from quorate.clusters import ClusterJob, grace_before
from quorate.errors import PreemptedError
from quorate.policy import default_cause, default_restart
from quorate.preemption import DEADLINE_VARIABLE, remove_deadline, write_deadline
from quorate.records import Assignment, Cause, FailureRecord, RestartBudget, RoundEnd, Verdict
from quorate.rendezvous._wire import decode_end, encode
from quorate.services import AgentView

ASSIGNMENT = Assignment(0, "me", "r", 1, 1, 3, 1, 3, 1, 3, "127.0.0.1", 1)
WARNING = protocol.PreemptionWarned(int(signal.SIGUSR1), 50.0, "Example job 1 was told to stop", True, 3)
NODE_WARNING = evolve(WARNING, whole_job=False, min_nodes=2)


def fed(state: State, *events: protocol.Input) -> tuple[State, list[protocol.Command]]:
    commands: list[protocol.Command] = []
    for event in events:
        result = step(state, event, 100.0)
        state = result.state
        commands += result.commands
    return state, commands


def running(*more: protocol.Input) -> State:
    begin = (protocol.Begin(), protocol.NodeChecked(), protocol.RoundJoined(ASSIGNMENT))
    return fed(State(Settings(3, 300.0, host="n2")), *begin, *more)[0]


def ended(event: protocol.PreemptionWarned) -> tuple[State, RoundEnd]:
    state, commands = fed(running(), event)
    kinds = [type(command) for command in commands]
    assert kinds == [protocol.EndRound, protocol.AnnounceDeadline, protocol.StopWorkers]
    record, announcement, stop = commands
    assert isinstance(record, protocol.EndRound)
    assert announcement == protocol.AnnounceDeadline(signal.SIGUSR1, 50.0, event.reason)
    assert stop == protocol.StopWorkers(signal.SIGUSR1, 50.0)
    assert state.phase is Phase.STOPPING
    return state, record.end


def test_a_warning_of_the_whole_job_is_recorded_as_its_end() -> None:
    state, end = ended(WARNING)
    assert (end.cause, end.verdict, end.signal_number, end.grace_seconds) == (
        Cause.PREEMPTED,
        Verdict.STOPPED,
        10,
        50.0,
    )
    assert end.lost == ()
    state, _ = fed(state, protocol.JobClosed(end), protocol.WorkersGone())
    assert state.finish is not None
    assert (state.finish.outcome, state.finish.end) == (Outcome.PREEMPTED, end)


@pytest.mark.parametrize(("min_nodes", "verdict"), [(2, Verdict.RESCALE), (3, Verdict.STOPPED), (0, Verdict.RESCALE)])
def test_a_warning_of_one_node_ends_the_job_only_where_too_few_stay(min_nodes: int, verdict: Verdict) -> None:
    state, end = ended(evolve(NODE_WARNING, min_nodes=min_nodes))
    assert end.verdict is verdict
    assert end.lost == (("me",) if verdict is Verdict.RESCALE else ())
    event = protocol.RoundEnded(end) if verdict is Verdict.RESCALE else protocol.JobClosed(end)
    state, commands = fed(state, event, protocol.WorkersGone())
    assert state.finish is not None
    assert state.finish.outcome is Outcome.PREEMPTED
    assert (protocol.Leave() in commands) is (verdict is Verdict.RESCALE)


def test_the_other_nodes_tell_their_workers_the_same() -> None:
    _, end = ended(WARNING)
    state, commands = fed(running(), protocol.JobClosed(decode_end("key", encode(end))))
    assert commands == [
        protocol.AnnounceDeadline(signal.SIGUSR1, 50.0, WARNING.reason),
        protocol.StopWorkers(signal.SIGUSR1, 50.0),
    ]
    state, _ = fed(state, protocol.WorkersGone())
    assert state.finish is not None
    assert state.finish.outcome is Outcome.PREEMPTED


def test_a_node_that_joins_a_preempted_job_says_so() -> None:
    _, end = ended(WARNING)
    state, _ = fed(State(Settings(3, 300.0)), protocol.Begin(), protocol.NodeChecked(), protocol.JobClosed(end))
    assert state.finish is not None
    assert state.finish.outcome is Outcome.PREEMPTED


@pytest.mark.parametrize("event", [WARNING, protocol.SignalReceived(signal.SIGTERM), protocol.SignalReceived(10)])
def test_further_signals_of_the_scheduler_change_nothing(event: protocol.Input) -> None:
    state, _ = ended(WARNING)
    assert fed(state, event)[1] == []


def test_a_person_can_still_end_the_job_at_once() -> None:
    state, _ = ended(WARNING)
    interrupt = protocol.SignalReceived(signal.SIGINT, is_person=True)
    state, first = fed(state, interrupt)
    assert isinstance(first[0], protocol.StopWorkers)
    state, commands = fed(state, interrupt)  # a key that bounced
    assert commands == []
    later = step(state, interrupt, 100.0 + SECOND_INTERRUPT_SECONDS)
    assert later.commands == (protocol.StopWorkers(signal.SIGKILL, 0.0),)


def test_an_end_that_another_node_has_recorded_counts() -> None:
    state, _ = ended(WARNING)
    other = RoundEnd(0, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers have succeeded")
    state, _ = fed(state, protocol.JobClosed(other), protocol.WorkersGone())
    assert state.finish is not None
    assert state.finish.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("phase", [(), (protocol.NodeChecked(),)], ids=["checking", "joining"])
def test_a_node_without_workers_leaves_at_once(phase: tuple[protocol.Input, ...]) -> None:
    state, commands = fed(State(Settings(3, 300.0)), protocol.Begin(), *phase, WARNING)
    assert protocol.Leave() in commands
    assert state.finish is not None
    assert state.finish.outcome is Outcome.PREEMPTED


def test_a_warning_while_workers_are_stopped_for_the_next_round_ends_this_nodes_part() -> None:
    restart = RoundEnd(0, Cause.EXCEPTION, Verdict.RESTART, "rank 0 failed", restart_count=1)
    state, commands = fed(running(protocol.RoundEnded(restart)), NODE_WARNING)
    assert commands[0] == protocol.AnnounceDeadline(signal.SIGUSR1, 50.0, WARNING.reason)
    state, commands = fed(state, protocol.WorkersGone())
    assert protocol.Leave() in commands
    assert state.finish is not None
    assert state.finish.outcome is Outcome.PREEMPTED


# --- which signals, and how much time ---------------------------------------------------------------------------------

JOB = ClusterJob(
    scheduler="Example",
    job_id="1",
    warnings=("SIGUSR1", "SIGTERM"),
    warns_whole_job=True,
    kill_seconds=30.0,
    min_nodes=2,
)


def warning_of(job: ClusterJob | None, number: int) -> Any:
    got: list[Any] = []
    preemption = Preemption(job, got.append)
    taken = preemption.takes(number)
    assert taken is bool(got)
    return got[0] if got else None


def test_after_sigterm_the_time_is_what_the_scheduler_waits() -> None:
    warning = warning_of(JOB, signal.SIGTERM)
    assert (warning.grace_seconds, warning.whole_job, warning.min_nodes) == (28.0, True, 2)
    assert warning.reason == "Example job 1 was told to stop by SIGTERM and will be killed in 30 s"


def test_an_early_warning_without_an_answer_leaves_the_usual_grace() -> None:
    assert warning_of(JOB, signal.SIGUSR1).grace_seconds is None


ANSWERS = [lambda: 1 / 0, lambda: sys.exit(3), *(lambda a=a: a for a in (float("nan"), float("inf"), -1, "60", True))]


@pytest.mark.parametrize("ask", ANSWERS)
def test_a_schedulers_answer_that_is_not_a_time_counts_as_none(ask: Any) -> None:
    job = evolve(JOB, seconds_left=ask)
    assert job.time_left() is None
    preemption = Preemption(job, [].append)
    preemption.begin()
    for thread in [each for each in threading.enumerate() if each.name == "quorate-time-left"]:
        thread.join()
    assert preemption.takes(signal.SIGUSR1)


def test_other_signals_and_other_agents_are_not_warned() -> None:
    assert warning_of(JOB, signal.SIGINT) is None
    assert warning_of(None, signal.SIGTERM) is None


def test_the_agent_keeps_some_of_the_time_for_itself() -> None:
    assert [grace_before(seconds) for seconds in (0.0, 2.0, 8.0, 120.0)] == [0.0, 1.5, 6.0, 118.0]


def test_a_service_reports_a_clouds_notice() -> None:
    got: list[Any] = []
    view: AgentView = View({}, lambda: None, None, got.append, print, 2)  # type: ignore[arg-type, return-value] # not used
    view.report_preemption(120.0, "spot notice")
    assert got == [protocol.PreemptionWarned(signal.SIGTERM, 118.0, "spot notice", whole_job=False, min_nodes=2)]


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, 0.0])
def test_a_wait_that_is_not_one_ends_at_once(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.delenv(DEADLINE_VARIABLE, raising=False)
    assert quorate.deadline(seconds) is None


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, "60", None])
def test_a_notice_without_a_time_is_the_services_mistake(seconds: Any) -> None:
    view: AgentView = View({}, lambda: None, None, pytest.fail, print, 2)  # type: ignore[arg-type, return-value] # not used
    with pytest.raises((TypeError, ValueError)):
        view.report_preemption(seconds, "spot notice")


# --- what workers read ------------------------------------------------------------------------------------------------


DEADLINE = '{"monotonic_seconds":%s,"unix_seconds":1,"reason":"r","signal_number":10}'


def test_a_deadline_is_read_back_until_it_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "deadline")
    monkeypatch.setenv(DEADLINE_VARIABLE, path)
    assert quorate.deadline() is None
    write_deadline(path, 60.0, "why", 10)
    found = quorate.deadline()
    assert found is not None
    assert (found.reason, found.signal_number) == ("why", 10)
    assert 0 < found.seconds_left <= 60
    remove_deadline(path)
    remove_deadline(path)
    assert quorate.deadline(wait_seconds=0.01) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"monotonic_seconds": "x"}', "null", "[" * 5000]
    + [DEADLINE % time for time in ("NaN", "1e999", "-Infinity", '"nan"', "9" * 400, "{}", '"\u0662"', "\xff")],
)
def test_what_is_not_a_deadline_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "deadline").write_text(content)
    monkeypatch.setenv(DEADLINE_VARIABLE, str(tmp_path / "deadline"))
    assert quorate.deadline() is None


# --- exit codes -------------------------------------------------------------------------------------------------------


def failure(code: int) -> FailureRecord:
    record = FailureRecord(0, 0, 7, code, Cause.EXIT_CODE, "no", 0)
    return evolve(record, cause=default_cause(record))


def test_a_worker_says_by_its_exit_code_whether_the_job_starts_again() -> None:
    budget = RestartBudget(0, 3)
    assert default_restart(failure(75), budget).verdict is Verdict.STOPPED
    assert default_restart(failure(79), budget).verdict is Verdict.FAILED
    assert default_restart(failure(1), budget).verdict is Verdict.RESTART


@pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")
@pytest.mark.parametrize(("code", "expected"), [(75, 75), (79, 79), (3, 1)])
def test_the_exit_code_of_quorate_says_so_too(code: int, expected: int) -> None:
    command = [sys.executable, "-m", "quorate", "run", "--cluster=none", "--no-python", "sh", "-c", f"exit {code}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == expected, done.stderr


class Scheduler:
    """What a test's machine has run."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    def run(self, *command: str) -> bool:
        self.commands.append(command)
        return True


@pytest.mark.parametrize(("job", "who"), [(None, "no scheduler is known here"), (JOB, "Example has no command")])
def test_a_job_that_nobody_can_put_in_the_queue_again_is_told_so(
    job: ClusterJob | None, who: str, capfd: pytest.CaptureFixture[str]
) -> None:
    requeue(job, PreemptedError("over", is_first=True), ThisMachine())
    assert who in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "left", "is_again"),
    [
        (signal.SIGTERM, 0.0, True),
        (signal.SIGTERM, 500.0, False),
        (signal.SIGTERM, None, False),
        (signal.SIGUSR1, None, True),
        (signal.SIGUSR1, 500.0, True),
    ],
)
def test_a_job_that_a_person_has_cancelled_is_not_put_in_the_queue_again(
    number: int, left: float | None, is_again: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """A time limit leaves no time; without a word about the time a SIGTERM counts as a person's."""
    job = evolve(JOB, requeue=("again", "1"), seconds_left=lambda: left)
    scheduler: Any = Scheduler()
    requeue(job, PreemptedError("over", is_first=True, signal_number=number), scheduler)
    assert scheduler.commands == ([("again", "1")] if is_again else [])
    assert ("not put in the queue again" in capfd.readouterr().err) is not is_again
