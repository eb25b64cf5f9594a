"""Several things at once: failures on all nodes, joins during failures, deaths while nodes gather."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from quorate import SignalException
from tests import workers
from tests.harness import DEADLINE, Ear, Gate, Job, as_store_client, as_store_host
from tests.watching import wait_for_text

LEASE = 2.0


def test_failures_everywhere_cost_one_restart(job: Job, ear: Ear, gate: Gate) -> None:
    """All workers of both nodes fail at the same moment; one of them is the cause, and one restart is spent."""
    plan = job.plan(workers.raise_all_once, ear.path, gate.path, nodes=(2, 2), workers=2, max_restarts=1)
    host = job.start(plan, plan)
    ear.hear(4, event="started", restart_count=0)
    gate.open()
    outcomes = host.outcomes()
    assert sorted(rank for outcome in outcomes for rank in outcome.values) == [0, 1, 2, 3]
    assert {outcome.remaining_restarts for outcome in outcomes} == {0}
    assert len(ear.hear(4, event="started", restart_count=1)) == 4


def test_eight_nodes_that_come_at_any_time_end_in_one_world(job: Job, ear: Ear, gate: Gate) -> None:
    """Whoever is late for the first round is in a later one; nothing of it counts as a restart."""
    nodes = (1, 8)
    plan = job.plan(workers.meet_on_restart, ear.path, gate.path, 8, nodes=nodes)
    hosts = [job.start(as_store_host(plan)), *[job.start(*[as_store_client(plan)] * count) for count in (3, 4)]]
    ear.hear(8, event="started", world_size=8)
    gate.open()
    outcomes = [outcome for host in hosts for outcome in host.outcomes()]
    assert sorted(rank for outcome in outcomes for rank in outcome.values) == list(range(8))
    assert {message["restart_count"] for message in ear.heard} == {0}


def test_a_node_that_dies_before_the_round_is_not_waited_for(job: Job, ear: Ear, gate: Gate) -> None:
    """While nodes gather, one of three is killed before the others have come; its replacement is taken."""
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(3, 3), rdzv={"lease_timeout": LEASE})
    keeper = job.start(as_store_host(plan), QUORATE_LOG="debug")
    victim = job.start(as_store_client(plan), QUORATE_LOG="debug")
    wait_for_text(victim.console_path, "joining", DEADLINE)
    victim.kill()
    others = [job.start(as_store_client(plan)) for _ in range(2)]
    alive = {keeper.pid, *(host.pid for host in others)}
    while not alive <= {m["agent"] for m in ear.all(event="started", world_size=3)}:
        ear.hear(len(ear.heard) + 1)
    gate.open()
    outcomes = [host.outcome() for host in (keeper, *others)]
    assert sorted(rank for outcome in outcomes for rank in outcome.values) == [0, 1, 2]
    assert {message["restart_count"] for message in ear.heard} == {0}


def test_a_restart_leaves_standbys_where_they_are(job: Job, ear: Ear, gate: Gate) -> None:
    """Nodes whose worker failed keep their places; whoever stood by still does."""
    arguments = (ear.path, [1], [gate.path])
    plan = job.plan(workers.fail_in_turn, *arguments, nodes=(2, 2), max_restarts=1)
    running = [job.start(as_store_host(plan)), job.start(as_store_client(plan))]
    before = ear.hear(2, event="started", restart_count=0)
    standby = job.start(as_store_client(plan))
    wait_for_text(standby.console_path, "stand", DEADLINE)
    gate.open()
    after = ear.hear(2, event="started", restart_count=1)
    places = [{(m["agent"], m["group_rank"]) for m in messages} for messages in (before, after)]
    assert places[0] == places[1]
    assert sorted(rank for host in running for rank in host.outcome().values) == [0, 1]
    assert standby.outcome().values == {}


def test_a_node_that_comes_with_a_failure_is_taken_in(job: Job, ear: Ear, gate: Gate) -> None:
    """A worker fails just when another node joins; all end in one world, one restart at most."""
    arguments = (ear.path, gate.path, 2)
    plan = job.plan(workers.raise_when_small, *arguments, nodes=(1, 2), max_restarts=1)
    keeper = job.start(as_store_host(plan))
    ear.hear(1, event="started", world_size=1)
    other = job.start(as_store_client(plan))
    gate.open()
    outcomes = [keeper.outcome(), other.outcome()]
    assert sorted(rank for outcome in outcomes for rank in outcome.values) == [0, 1]
    assert len({outcome.remaining_restarts for outcome in outcomes}) == 1


def test_a_node_that_dies_while_another_is_in_the_barrier(job: Job, ear: Ear, gate: Gate) -> None:
    """In the exit barrier, the work of the lost node is not done, so the survivor runs it again, alone."""
    plan = job.plan(workers.wait_for_ranks, ear.path, gate.path, 1, nodes=(1, 2), rdzv={"lease_timeout": LEASE})
    plan = replace(plan, rdzv={**plan.rdzv, "last_call_timeout": 10.0})
    ranked = [replace(plan, spec={**plan.spec, "node_rank": None}) for _ in range(2)]
    keeper = job.start(as_store_host(ranked[0]))
    other = job.start(as_store_client(ranked[1]))
    (late,) = ear.hear(1, event="started", world_size=2)
    ear.hear(1, event="done", world_size=2)
    if late["agent"] == keeper.pid and job.backend.dies_with_host:
        gate.open()
        assert keeper.outcome().values == {1: 1}
        assert other.outcome().values == {0: 0}
        return
    victim, survivor = (keeper, other) if late["agent"] == keeper.pid else (other, keeper)
    survivor_plan_rank = ear.all(event="done", world_size=2)[0]["rank"]
    assert survivor_plan_rank == 0
    victim.kill()
    ear.hear(1, event="done", world_size=1, restart_count=0)
    assert survivor.outcome().values == {0: 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cluster_that_stops_all_nodes_at_once(job: Job, ear: Ear, number: signal.Signals) -> None:
    """Every node is signalled; each gives its workers their grace and leaves, and nobody waits for the others."""
    # Who waited for the others would wait for as long as it would for a round, and the outcome would not come.
    plan = job.plan(workers.trap, ear.path, True, nodes=(2, 2), workers=2, rdzv={"join_timeout": 10 * DEADLINE})
    hosts = [job.start(as_store_host(plan)), job.start(as_store_client(plan))]
    ear.hear(4, event="started")
    for host in hosts:
        host.send_signal(number)
    outcomes = [host.outcome() for host in hosts]
    assert all(isinstance(outcome.error, SignalException) for outcome in outcomes), outcomes
    ear.hear(4, event="saved")
