"""The job's verdict: the same on every node, the root cause and not a victim, whichever way the job ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from quorate import ChildFailedError
from quorate.files import read_bytes
from quorate.proc import children_of
from quorate.verdict import JobVerdict
from tests import peers, workers
from tests.backends import BACKENDS
from tests.harness import DEADLINE, Ear, Gate, Job, Outcome, as_store_client, as_store_host
from tests.watching import wait_for_text

#: Seconds after which a silent node counts as lost, in the tests that wait for it.
LEASE = 2.0
only_tcp = pytest.mark.parametrize("backend", ["tcp"], indirect=True)


def verdicts_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/verdict.json"))]


def shared_part(verdict: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in verdict.items() if key not in ("this_node", "time_ns")}


def verdict_of(outcome: Outcome) -> JobVerdict:
    assert outcome.result is not None
    assert outcome.result.verdict is not None
    return outcome.result.verdict


@pytest.fixture
def pipes(tmp_path: Path) -> list[str]:
    """Two named pipes, one for each direction."""
    paths = [str(tmp_path / name) for name in ("there", "back")]
    for path in paths:
        os.mkfifo(path)
    return paths


def test_every_node_prints_and_keeps_the_same(job: Job, ear: Ear, gate: Gate) -> None:
    """The node of the failure and one that only heard of it."""
    plan = job.plan(workers.raise_or_hold, 1, ear.path, gate.path, nodes=(2, 2))
    host = job.start(plan, plan)
    ear.hear(2, event="started")
    gate.open()
    outcomes = host.outcomes()
    reports = {
        str(ChildFailedError("trainer", outcome.failed.failures, outcome.failed.reason, verdict_of(outcome)))
        for outcome in outcomes
    }
    assert len(reports) == 1
    (report,) = reports
    assert "rank 1 (local rank 0)" in report
    assert "round 0: exception of rank 1" in report
    first, second = verdicts_in(job.log_dir)
    assert shared_part(first) == shared_part(second)
    assert first["this_node"]["node"] != second["this_node"]["node"]
    assert (first["state"], first["cause"]) == ("failed", "exception")
    cause = first["first_cause"]
    assert (cause["rank"], cause["attempt"], cause["exit_code"], cause["signal"]) == (1, 0, 1, None)
    assert "raise_or_hold" in cause["traceback"]
    assert cause["time_ns"] > 0
    assert any("ValueError: rank 1 fails" in line for line in cause["stderr"])


def test_a_lost_node_is_the_cause_and_not_who_leaned_on_it(job: Job, ear: Ear, pipes: list[str]) -> None:
    """Workers communicate, and no restart is left: the survivor goes on, and the record names the node."""
    rdzv = {"lease_timeout": LEASE, "last_call_timeout": DEADLINE}
    plan = job.plan(peers.lean_on_peer, ear.path, pipes, peers.BROKEN, nodes=(1, 2), rdzv=rdzv)
    keeper, victim = job.start(as_store_host(plan)), job.start(as_store_client(plan))
    ear.hear(2, event="started")
    victim.kill()
    outcome = keeper.outcome()
    assert outcome.values == {0: 0}
    (verdict,) = (verdict for verdict in verdicts_in(job.log_dir) if verdict["rounds"])
    first = verdict["rounds"][0]
    assert (first["cause"], first["verdict"]) == ("node_lost", "rescale")
    assert "is lost" in first["reason"]
    assert verdict["state"] == "succeeded"
    assert verdict["restarts"] == {"used": 0, "allowed": 0}


@only_tcp
def test_a_node_that_comes_to_be_missed_is_named_afterwards(job: Job, ear: Ear, pipes: list[str]) -> None:
    """A failure that looks like any other restarts the job at once; who seals the next round sees who is gone."""
    rdzv = {"lease_timeout": LEASE, "last_call_timeout": DEADLINE, "return_timeout": DEADLINE}
    plan = job.plan(peers.lean_on_peer, ear.path, pipes, "step 7 failed", nodes=(1, 2), max_restarts=1, rdzv=rdzv)
    keeper, victim = job.start(as_store_host(plan)), job.start(as_store_client(plan))
    ear.hear(2, event="started")
    for pid in children_of(victim.pid):  # or it would say at once that the agent was killed
        if b"_last_word_program" in read_bytes(f"/proc/{pid}/cmdline"):
            os.kill(pid, signal.SIGKILL)
    victim.kill()
    assert keeper.outcome().remaining_restarts == 1, "losing a node costs no restart"
    (verdict,) = (verdict for verdict in verdicts_in(job.log_dir) if verdict["rounds"])
    first = verdict["rounds"][0]
    assert (first["cause"], first["verdict"]) == ("exception", "restart")
    (missing,) = first["missing"]
    assert missing.endswith("was lost")
    assert f"in round 0 {missing}: this probably ended the round" in keeper.console()


def test_who_failed_first_hand_is_the_cause_although_its_victim_was_quicker(
    job: Job, ear: Ear, pipes: list[str], tmp_path: Path
) -> None:
    gates = [Gate(tmp_path / f"gate-{number}") for number in range(2)]
    plan = job.plan(peers.fail_under_peer, ear.path, pipes, [gate.path for gate in gates], nodes=(2, 2))
    host = job.start(plan, plan, QUORATE_LOG="debug")
    ear.hear(2, event="started")
    gates[0].open()
    wait_for_text(host.console_path, ": broken_collective: ", DEADLINE)
    gates[1].open()
    for gate in gates:
        gate.close()
    outcomes = host.outcomes()
    for outcome in outcomes:
        first = verdict_of(outcome).first_cause
        assert first is not None
        assert (first.rank, first.cause.value) == (1, "exception")
    victims = [failure.cause.value for outcome in outcomes for failure in verdict_of(outcome).victims]
    assert victims == ["broken_collective"]


@only_tcp
def test_a_failure_that_repeats_holds_all_nodes_back(job: Job, ear: Ear) -> None:
    """The pause is decided on one node, recorded for all, kept by all, and told."""
    plan = job.plan(peers.fail_twice, ear.path, nodes=(2, 2), max_restarts=3)
    host = job.start(plan, plan)
    for outcome in host.outcomes():
        assert outcome.remaining_restarts == 1
    first, second = verdicts_in(job.log_dir)
    assert shared_part(first) == {**shared_part(second), "reason": first["reason"]}
    pauses = [end["delay_seconds"] for end in first["rounds"] if end["verdict"] == "restart"]
    assert pauses[0] == 0.0
    assert 0.5 <= pauses[1] <= 1.0
    failed_at = ear.hear(1, event="started", rank=1, restart_count=1)[0]["at"]
    assert all(m["at"] - failed_at > pauses[1] for m in ear.hear(2, event="started", restart_count=2))
    assert f"restart 2 of 3, after a pause of {pauses[1]:.1f} s" in host.console()


@only_tcp
def test_a_job_that_is_stopped_says_by_whom(job: Job, ear: Ear) -> None:
    host = job.start(job.plan(workers.trap, ear.path, True))
    ear.hear(1, event="started")
    host.send_signal(signal.SIGTERM)
    host.outcome()
    (verdict,) = verdicts_in(job.log_dir)
    assert (verdict["state"], verdict["cause"], verdict["signal"]["name"]) == ("stopped", "stopped", "SIGTERM")


@only_tcp
def test_a_job_that_nobody_else_joined(job: Job) -> None:
    """Also where no worker ever ran."""
    job.run(job.plan(workers.give, 1, nodes=(2, 2), rdzv={"join_timeout": 1.0}))
    (verdict,) = verdicts_in(job.log_dir)
    assert (verdict["state"], verdict["cause"]) == ("no_round", "too_few_nodes")
    assert "1 of 2" in verdict["reason"]


@pytest.mark.parametrize("backend", [name for name, row in BACKENDS.items() if row.dies_with_host], indirect=True)
def test_a_job_whose_store_is_gone(job: Job, ear: Ear, gate: Gate) -> None:
    """With the agent that served it; what an outage of etcd does is in ``test_etcd_outages``."""
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(2, 2))
    keeper, other = job.start(as_store_host(plan)), job.start(as_store_client(plan))
    ear.hear(2, event="started")
    keeper.kill()
    assert other.outcome().error is not None
    (verdict,) = verdicts_in(job.log_dir)
    assert (verdict["state"], verdict["cause"]) == ("store_lost", "store_lost")


@only_tcp
def test_a_verdict_that_cannot_be_kept_is_printed_all_the_same(job: Job) -> None:
    """A warning, and the result is what it would have been."""
    plan = job.plan(peers.lose_logs, str(job.log_dir))
    host = job.start(plan)
    assert host.outcome().failed.is_failed()
    assert "the verdict could not be written" in host.console()
