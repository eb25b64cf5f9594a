"""Node checks in jobs of several agents: who is not well stays out or leaves with its reason, the others go on.

What does not live here: what each check finds (``plugins/health/tests``).
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from quorate import RendezvousTimeoutError, UnhealthyNodeError
from quorate.hookspecs import hookimpl
from quorate.records import FailureRecord, RestartBudget, RestartDecision, Verdict
from tests import workers
from tests.harness import DEADLINE, Ear, Gate, Job, Plan, as_store_client, as_store_host
from tests.watching import wait_for_text

#: Seconds between checks, and the most that the command of these tests may take.
INTERVAL, COMMAND = 0.2, 5.0


def checked(plan: Plan, *command: str, interval: float = 0.0, **limits: float) -> Plan:
    """Have the plan's agent run a command as a check, and measure the store; how this machine is does not matter."""
    settings = {"health_checks": {"store", "command"}, "health_check_cmd": command, "health_check_conf": limits}
    return replace(plan, spec={**plan.spec, "settings": settings, "health_interval": interval})


def started_after(ear: Ear, since: float, count: int, **facts: Any) -> list[dict[str, Any]]:
    """Wait for ``count`` workers that have started after ``since``."""
    while len(later := [m for m in ear.all(event="started", **facts) if m["at"] > since]) < count:
        ear.hear(len(ear.heard) + 1)
    return later


def test_a_node_that_becomes_unhealthy_leaves_and_the_other_goes_on(job: Job, ear: Ear, gate: Gate) -> None:
    """Within the interval and the check's time-out; its reason is the round's end, which the other one prints."""
    well = job.folder / "well"
    well.touch()
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 2), max_restarts=1)
    sick = checked(plan, "test", "-e", str(well), interval=INTERVAL, command_timeout_s=COMMAND)
    keeper, leaver = job.start_in_order(ear, plan, sick)
    ear.hear(2, event="started", group_world_size=2)
    well.unlink()
    began = time.monotonic()
    outcome = leaver.outcome()
    assert isinstance(outcome.error, UnhealthyNodeError)
    assert str(outcome.error) == "this node does not take part: command: test ended with exit code 1"
    assert outcome.ended_at - began < INTERVAL + COMMAND + 10.0
    (alone,) = started_after(ear, began, 1, group_world_size=1)
    assert alone["restart_count"] == 0, "it costs no restart"
    gate.open()
    assert keeper.outcome().values == {0: 0}
    assert "is unhealthy: command: test ended with exit code 1" in keeper.console()


def test_a_node_that_is_unhealthy_does_not_join(job: Job, ear: Ear, gate: Gate) -> None:
    """The other one is not disturbed: its workers run on in their round."""
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 2))
    keeper = job.start(as_store_host(plan))
    ear.hear(1, event="started", group_world_size=1)
    outcome = job.start(as_store_client(checked(plan, "false"))).outcome()
    assert isinstance(outcome.error, UnhealthyNodeError)
    gate.open()
    assert keeper.outcome().values == {0: 0}
    assert len(ear.all(event="started")) == 1


def test_those_who_wait_are_told_why_a_node_does_not_come(job: Job, ear: Ear) -> None:
    """The one that gathers the round prints it at once; the next node that is well completes the round."""
    plan = job.plan(workers.give, 7, nodes=(2, 2))
    waiting = job.start(as_store_host(plan))
    told = "does not join round 0: command: false ended with exit code 1"
    for _ in range(20):  # until the one that waits is there to be told
        assert isinstance(job.start(as_store_client(checked(plan, "false"))).outcome().error, UnhealthyNodeError)
        if told in waiting.console():
            break
    assert told in waiting.console()
    other = job.start(as_store_client(plan))
    assert {**waiting.outcome().values, **other.outcome().values} == {0: 7, 1: 7}


@pytest.mark.parametrize("backend", ["etcd"], indirect=True)
def test_a_node_that_does_not_join_is_no_sealer(job: Job, ear: Ear) -> None:
    """It took the first ticket, whose holder seals; the next one does it instead."""
    plan = job.plan(workers.give, 7, nodes=(2, 2), rdzv={"lease_timeout": 2.0})
    assert isinstance(job.start(checked(plan, "false")).outcome().error, UnhealthyNodeError)
    both = [job.start(plan), job.start(plan)]
    assert {rank: value for host in both for rank, value in host.outcome().values.items()} == {0: 7, 1: 7}


@pytest.mark.parametrize("backend", ["tcp"], indirect=True)
def test_a_time_out_names_the_node_that_did_not_join(job: Job) -> None:
    plan = job.plan(workers.give, 7, nodes=(2, 2), rdzv={"join_timeout": 5.0})
    waiting = job.start(as_store_host(plan))
    while "does not join" not in waiting.console():
        job.start(as_store_client(checked(plan, "false"))).outcome()
    error = waiting.outcome().error
    assert isinstance(error, RendezvousTimeoutError)
    assert "1 of 2 nodes joined (" in str(error)
    assert "does not join: command: false ended with exit code 1" in str(error)


class Excluding:
    """A policy: whose worker fails is out, the others start again."""

    @hookimpl
    def quorate_decide_restart(self, failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
        return RestartDecision(Verdict.RESTART, reason="one failure is enough", exclude_node=True)


excluding = Excluding()


def test_a_policy_excludes_a_node(job: Job, ear: Ear, gate: Gate) -> None:
    """``decide_restart`` says ``exclude_node``: that node ends as an unhealthy one, the other goes on without it."""
    plan = job.plan(workers.fail_if_second, ear.path, gate.path, nodes=(1, 2), max_restarts=3)
    plan = replace(plan, plugins=("tests.test_node_checks:excluding",))
    keeper, culprit = job.start_in_order(ear, plan, plan)
    ear.hear(2, event="started", group_world_size=2)
    began = time.monotonic()
    gate.open()
    outcome = culprit.outcome()
    assert isinstance(outcome.error, UnhealthyNodeError)
    assert "one failure is enough; its node is excluded" in str(outcome.error)
    assert keeper.outcome().values == {0: 0}
    (alone,) = started_after(ear, began, 1, group_world_size=1)
    assert alone["restart_count"] == 0, "losing a node costs no restart"
    assert "its node is excluded" in keeper.console()


@pytest.mark.parametrize("backend", ["tcp"], indirect=True)
def test_a_node_whose_store_is_frozen_leaves_if_it_was_told_to(job: Job, ear: Ear, gate: Gate) -> None:
    """``store_latency_ms``: the agent that serves the store stands still; the other ends though it can tell nobody."""
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 2), rdzv={"close_timeout": 0.5, "lease_timeout": 2.0})
    server, leaver = job.start_in_order(ear, plan, checked(plan, "true", interval=INTERVAL, store_latency_ms=300.0))
    ear.hear(2, event="started", group_world_size=2)
    server.send_signal(signal.SIGSTOP)
    try:
        wait_for_text(leaver.console_path, "this node does not take part", DEADLINE)
    finally:
        server.send_signal(signal.SIGCONT)
    error = leaver.outcome().error
    assert isinstance(error, UnhealthyNodeError)
    assert "store: the rendezvous store did not answer within 300 ms, more than store_latency_ms=300" in str(error)
    gate.open()
    assert server.outcome().values == {0: 0}
