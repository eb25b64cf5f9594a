"""Workers that fail: what is reported, what is restarted, what the others do."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from quorate import ChildFailedError
from tests import workers
from tests.harness import Ear, Gate, Job, as_store_client, as_store_host


def test_an_exception_is_reported_with_its_rank_and_its_file(job: Job, tmp_path: Path) -> None:
    """Rank, local rank, exit code, time and the recorded exception; the same JSON in the agent's error file."""
    reply = tmp_path / "reply.json"
    started = int(time.time())
    plan = job.plan(workers.raise_on, [1], 1, workers=2)
    (outcome,) = job.run(plan, TORCHELASTIC_ERROR_FILE=str(reply))
    result = outcome.failed
    rank, failure = ChildFailedError("trainer", result.failures, result.reason).get_first_failure()
    assert (rank, failure.local_rank, failure.exitcode) == (1, 1, 1)
    assert started <= failure.timestamp <= time.time()
    message = failure.error_file_data["message"]
    assert "ValueError: rank 1 fails: told to" in message["message"]
    assert "raise_on" in message["extraInfo"]["py_callstack"]
    assert started <= int(message["extraInfo"]["timestamp"]) <= time.time()
    assert json.loads(reply.read_text()) == failure.error_file_data
    written = json.loads(Path(failure.error_file).read_text())
    assert written.items() >= failure.error_file_data.items()
    assert (written["cause"], written["exit_code"], written["restart_count"]) == ("exception", 1, 0)  # the agent's part
    assert outcome.state == "FAILED"


def test_a_failure_reaches_all_nodes_with_the_same_words(job: Job) -> None:
    """Over two nodes, every agent reports the root cause, also where none of its own workers failed."""
    plan = job.plan(workers.raise_on, [2], 1, nodes=(2, 2), workers=2)
    outcomes = job.run(plan, plan)
    assert len({outcome.failed.reason for outcome in outcomes}) == 1
    for outcome in outcomes:
        failure = outcome.failed.failures[2]
        assert (failure.local_rank, failure.exitcode) == (0, 1)
        assert "rank 2 fails" in failure.message


def test_restarts_are_used_up_and_then_the_job_fails(job: Job) -> None:
    """Half of four workers fail in every attempt; two restarts, then FAILED with none remaining."""
    plan = job.plan(workers.raise_on, [0, 2], 99, workers=4, max_restarts=2)
    (outcome,) = job.run(plan)
    assert outcome.failed.is_failed()
    assert outcome.failed.state.value == "FAILED"
    assert outcome.remaining_restarts == 0
    assert outcome.total_execution_time > 0
    attempts = {path.name for path in job.log_dir.glob("*/attempt_*")}
    assert attempts == {"attempt_0", "attempt_1", "attempt_2"}
    first = min(outcome.failed.failures.values(), key=lambda failure: failure.timestamp)
    assert first.record is not None
    assert first.record.restart_count == 2


def test_the_budget_belongs_to_the_job(job: Job) -> None:
    """Over two nodes, failures of either node count once for all, and both export the same count."""
    plan = job.plan(workers.raise_on, [0, 1], 99, nodes=(2, 2), max_restarts=2)
    outcomes = job.run(plan, plan)
    for outcome in outcomes:
        assert outcome.failed.is_failed()
        assert outcome.remaining_restarts == 0
    runs = [{path.name for path in run.glob("attempt_*")} for run in job.log_dir.iterdir()]
    assert runs == [{"attempt_0", "attempt_1", "attempt_2"}] * 2


def test_a_killed_rank_is_restarted(job: Job) -> None:
    """A rank killed by signal 9 in attempt 0 runs again, with the others, and the job succeeds."""
    plan = job.plan(workers.die_by, int(signal.SIGKILL), 1, 1, nodes=(2, 2), max_restarts=1)
    outcomes = job.run(plan, plan)
    assert {rank for outcome in outcomes for rank in outcome.values} == {0, 1}
    assert {outcome.remaining_restarts for outcome in outcomes} == {0}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_fatal_signal_is_named(job: Job, number: signal.Signals) -> None:
    """The negative exit code and the signal's name."""
    (outcome,) = job.run(job.plan(workers.die_by, int(number), 0, 1, workers=2))
    failure = outcome.failed.failures[0]
    assert failure.exitcode == -number
    assert failure.signal_name() == number.name
    assert number.name in failure.message
    assert number.name in str(ChildFailedError("trainer", outcome.failed.failures))


def test_a_signal_from_outside_is_a_failure_of_that_rank(job: Job, ear: Ear, gate: Gate) -> None:
    """SIGTERM sent to a worker by somebody else is its failure, not the agent's stop."""
    host = job.start(job.plan(workers.meet, ear.path, gate.path, workers=2))
    started = ear.hear(2, event="started")
    os.kill(next(message["pid"] for message in started if message["rank"] == 1), signal.SIGTERM)
    result = host.outcome().failed
    assert set(result.failures) == {1}
    assert result.failures[1].exitcode == -signal.SIGTERM


def test_victims_are_told_from_the_cause(job: Job, ear: Ear, gate: Gate) -> None:
    """Workers that the agent stopped because another one had failed are not reported as failures."""
    host = job.start(job.plan(workers.raise_or_hold, 1, ear.path, gate.path, workers=3))
    ear.hear(3, event="started")
    gate.open()
    assert set(host.outcome().failed.failures) == {1}


def test_a_failure_stops_the_other_node_at_once(job: Job, ear: Ear, gate: Gate) -> None:
    """Workers of another node that never communicate are stopped in one round trip, not by a time-out."""
    lease = 30.0
    plan = job.plan(workers.raise_or_hold, 1, ear.path, gate.path, nodes=(2, 2), rdzv={"lease_timeout": lease})
    hosts = [job.start(as_store_host(plan)), job.start(as_store_client(plan))]
    ear.hear(2, event="started")
    gate.open()
    opened = time.monotonic()
    outcomes = [host.outcome() for host in hosts]
    assert all(1 in outcome.failed.failures for outcome in outcomes)
    assert max(outcome.ended_at for outcome in outcomes) - opened < lease / 2


def test_the_restart_count_is_the_same_on_all_nodes(job: Job, ear: Ear, tmp_path: Path) -> None:
    """After a restart, whichever node caused it, all workers of all nodes export the same count."""
    gates = [Gate(tmp_path / f"gate-{attempt}") for attempt in range(2)]
    arguments = (ear.path, [0, 3], [gate.path for gate in gates])
    plan = job.plan(workers.fail_in_turn, *arguments, nodes=(2, 2), workers=2, max_restarts=5)
    host = job.start(plan, plan)
    for attempt, gate in enumerate(gates):
        ear.hear(4, event="started", restart_count=attempt)
        gate.open()
        gate.close()
    outcomes = host.outcomes()
    assert {rank for outcome in outcomes for rank in outcome.values} == {0, 1, 2, 3}
    assert len(ear.hear(4, event="started", restart_count=2)) == 4
    assert {outcome.remaining_restarts for outcome in outcomes} == {3}


@pytest.mark.parametrize("text", ["", '{"message": {"mess', "\x00" * 99, "[1, 2]", '{"message": 7}'])
def test_a_torn_error_file_breaks_nothing(job: Job, text: str) -> None:
    """Whatever lies in the error file, the failure is reported with its exit code."""
    (outcome,) = job.run(job.plan(workers.write_error_file, text, 9))
    failure = outcome.failed.failures[0]
    assert failure.exitcode == 9
    assert not failure.has_error_data
    assert failure.error_file_data == {"message": "<NONE>"}
    assert "9" in failure.message


def test_an_error_file_with_a_plain_message_is_read(job: Job) -> None:
    """Readers also take ``{"message": str}``."""
    (outcome,) = job.run(job.plan(workers.write_error_file, '{"message": "out of luck"}', 1))
    assert outcome.failed.failures[0].message == "out of luck"


def test_without_record_the_exit_code_and_the_last_lines_tell(job: Job) -> None:
    """A command that fails without an error file is reported by what it printed last."""
    script = "import sys; print('the end is near', file=sys.stderr); 1 / 0"
    plan = job.plan(sys.executable, "-c", script)
    (outcome,) = job.run(plan)
    failure = outcome.failed.failures[0]
    assert failure.exitcode == 1
    assert "ZeroDivisionError" in failure.message


def test_a_command_that_does_not_exist_is_not_tried_again(job: Job) -> None:
    """What cannot be started is one clear error, whatever restarts are left."""
    (outcome,) = job.run(job.plan("/nowhere/no-such-program", max_restarts=3))
    assert outcome.failed.is_failed()
    assert "no-such-program" in outcome.failed.reason
    assert outcome.remaining_restarts == 3
