"""Nodes that die, come, go and wait while the job runs."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from tests import workers
from tests.harness import DEADLINE, PROMPT, Ear, Gate, Host, Job, Plan, as_store_client, as_store_host, wait_for_end
from tests.watching import wait_for_text

#: Seconds after which a silent node counts as lost, in the tests that wait for it.
LEASE = 2.0
#: Seconds beyond the lease for the survivors to notice, stop, agree and start again: the promise is 1, the rest is
#: for machines that are busy with other things.
SLACK = 6.0


def short_lease(plan: Plan) -> Plan:
    return replace(plan, rdzv={**plan.rdzv, "lease_timeout": LEASE})


def meeting(job: Job, ear: Ear, gate: Gate, nodes: tuple[int, int], **changes: Any) -> Plan:
    return short_lease(job.plan(workers.meet, ear.path, gate.path, nodes=nodes, **changes))


def pids_of(ear: Ear, host: Host) -> list[int]:
    return [message["pid"] for message in ear.all(event="started", agent=host.pid)]


def _hear_later(ear: Ear, count: int, since: float, **facts: Any) -> list[dict[str, Any]]:
    """Wait for ``count`` workers that have started after ``since``."""
    while len(later := [m for m in ear.all(event="started", **facts) if m["at"] > since]) < count:
        ear.hear(len(ear.heard) + 1)
    return later


def test_a_replacement_takes_the_place_of_a_killed_agent(job: Job, ear: Ear, gate: Gate) -> None:
    """Of two agents (2:2) one is killed and started again; both finish well, at no cost of restarts."""
    plan = meeting(job, ear, gate, (2, 2), workers=2)
    keeper, victim = job.start(as_store_host(plan)), job.start(as_store_client(plan))
    ear.hear(4, event="started")
    victim.kill()
    replacement = job.start(as_store_client(plan))
    ear.hear(8, event="started")
    gate.open()
    outcomes = [keeper.outcome(), replacement.outcome()]
    assert {rank for outcome in outcomes for rank in outcome.values} == {0, 1, 2, 3}
    assert {message["restart_count"] for message in ear.heard} == {0}
    ranks = [{m["rank"] for m in ear.all(agent=keeper.pid)}, {m["rank"] for m in ear.all(agent=replacement.pid)}]
    assert sorted(map(sorted, ranks)) == [[0, 1], [2, 3]], "ranks are sticky: the replacement has the vacated ones"


def test_the_survivor_goes_on_alone(job: Job, ear: Ear, gate: Gate) -> None:
    """Of two agents (1:2) one is killed and not replaced; its workers die with it, the other re-forms alone.

    The workers never communicate: nothing but the lease tells that the node is gone.
    """
    keeper, victim = job.start_in_order(ear, *[meeting(job, ear, gate, (1, 2), workers=2)] * 2)
    ear.hear(4, event="started", group_world_size=2)
    orphans = pids_of(ear, victim)
    killed = victim.kill()
    wait_for_end(orphans, PROMPT)
    alone = _hear_later(ear, 2, killed, group_world_size=1, world_size=2)
    assert max(m["at"] for m in alone) - killed < LEASE + SLACK
    gate.open()
    outcome = keeper.outcome()
    assert outcome.values == {0: 0, 1: 1}
    assert outcome.remaining_restarts == 0


@pytest.mark.parametrize("victim_rank", [0, 1], ids=["first", "other"])
def test_survivors_of_three_go_on_with_a_live_master(job: Job, ear: Ear, gate: Gate, victim_rank: int) -> None:
    """Whichever group rank is lost, the others agree on a new master."""
    plan = meeting(job, ear, gate, (2, 3))
    hinted = [replace(plan, spec={**plan.spec, "node_rank": rank}) for rank in (1, 0)]
    hosts = [job.start(as_store_host(hinted[0])), *[job.start(as_store_client(p)) for p in (hinted[1], plan)]]
    first = ear.hear(3, event="started", group_world_size=3)
    by_rank = {m["group_rank"]: m["agent"] for m in first}
    # The agent that serves the store (group rank 1) lives on in both cases.
    lost = by_rank[0 if victim_rank == 0 else 2]
    victim = next(host for host in hosts if host.pid == lost)
    killed = victim.kill()
    survivors = _hear_later(ear, 2, killed, group_world_size=2)
    assert max(m["at"] for m in survivors) - killed < LEASE + SLACK
    assert len({(m["master_addr"], m["master_port"]) for m in survivors}) == 1
    gate.open()
    values = [host.outcome().values for host in hosts if host is not victim]
    assert sorted(rank for value in values for rank in value) == [0, 1]


def test_process_groups_form_again_after_growth_and_loss(job: Job, ear: Ear, gate: Gate) -> None:
    """After a node has joined, and after group rank 0 is lost, gloo forms over the new live master."""
    forked = {"start_method": "fork"}  # from an agent that has torch
    plan = short_lease(job.plan(workers.all_reduce_and_meet, ear.path, gate.path, nodes=(1, 3), agent=forked))
    plan = replace(plan, rdzv={**plan.rdzv, "lease_timeout": 5.0})
    keeper = job.start(as_store_host(plan))
    ear.hear(1, event="reduced", world_size=1, total=0)
    first = job.start(as_store_client(plan))
    grown = ear.hear(2, event="reduced", world_size=2, total=1)
    assert len({(m["master_addr"], m["master_port"]) for m in grown}) == 1
    second = job.start(as_store_client(plan))
    ear.hear(3, event="reduced", world_size=3, total=3)
    first.kill()
    ear.hear(4, event="reduced", world_size=2, total=1)
    gate.open()
    for host in (keeper, second):
        assert set(host.outcome().values.values()) == {(1, 2)}


def test_a_second_node_joins_a_running_job(job: Job, ear: Ear, gate: Gate) -> None:
    """Both run with the bigger world, no restart is counted; a node that leaves costs none either."""
    plan = meeting(job, ear, gate, (1, 2), max_restarts=1)
    plan = replace(plan, rdzv={**plan.rdzv, "lease_timeout": DEADLINE})
    keeper, other = job.start_in_order(ear, plan, plan)
    both = ear.hear(2, event="started", group_world_size=2, world_size=2)
    assert {m["agent"] for m in both} == {keeper.pid, other.pid}
    assert len({(m["master_addr"], m["master_port"]) for m in both}) == 1
    left = time.monotonic()
    other.send_signal(signal.SIGTERM)
    assert type(other.outcome().error).__name__ == "SignalException"
    (alone,) = _hear_later(ear, 1, left, group_world_size=1)
    assert alone["at"] - left < DEADLINE / 2, "a node that says goodbye is not waited for"
    third = job.start(as_store_client(plan))
    _hear_later(ear, 2, alone["at"], group_world_size=2)
    gate.open()
    outcomes = [keeper.outcome(), third.outcome()]
    assert {message["restart_count"] for message in ear.heard} == {0}
    assert {outcome.remaining_restarts for outcome in outcomes} == {1}
    assert sorted(rank for outcome in outcomes for rank in outcome.values) == [0, 1]


def test_a_surplus_node_stands_by_and_ends_well(job: Job, ear: Ear, gate: Gate) -> None:
    """A third agent of a 1:2 job runs nothing, disturbs nobody, and ends well with the job."""
    plan = meeting(job, ear, gate, (1, 2))
    running = job.start_in_order(ear, plan, plan)
    ear.hear(2, event="started", group_world_size=2)
    standby = job.start(as_store_client(plan))
    wait_for_text(standby.console_path, "stand", DEADLINE)
    gate.open()
    assert sorted(rank for host in running for rank in host.outcome().values) == [0, 1]
    assert standby.outcome().values == {}
    assert len(ear.all(event="started", group_world_size=2)) == 2


def test_a_standby_is_promoted_when_a_node_dies(job: Job, ear: Ear, gate: Gate) -> None:
    """The first in line takes the vacated place, without anybody having to start it."""
    plan = meeting(job, ear, gate, (1, 2))
    keeper, victim = job.start_in_order(ear, plan, plan)
    ear.hear(2, event="started", group_world_size=2)
    standby = job.start(as_store_client(plan))
    wait_for_text(standby.console_path, "stand", DEADLINE)
    killed = victim.kill()
    promoted = _hear_later(ear, 2, killed, group_world_size=2)
    assert {m["agent"] for m in promoted} == {keeper.pid, standby.pid}
    assert max(m["at"] for m in promoted) - killed < LEASE + SLACK
    gate.open()
    assert sorted(rank for host in (keeper, standby) for rank in host.outcome().values) == [0, 1]


def test_a_frozen_agent_stops_its_workers_and_comes_back(job: Job, ear: Ear, gate: Gate) -> None:
    """An agent that stood still past its lease finds itself declared lost, stops its workers, and rejoins.

    No two worlds run at once for longer than it takes the returning agent to look.
    """
    plan = meeting(job, ear, gate, (1, 2))
    keeper, frozen = job.start_in_order(ear, plan, plan)
    ear.hear(2, event="started", group_world_size=2)
    old = [m["pid"] for m in ear.all(event="started", group_world_size=2, agent=frozen.pid)]
    stopped = time.monotonic()
    frozen.send_signal(signal.SIGSTOP)
    (alone,) = _hear_later(ear, 1, stopped, group_world_size=1)
    assert alone["agent"] == keeper.pid
    frozen.send_signal(signal.SIGCONT)
    wait_for_end(old, DEADLINE)
    again = _hear_later(ear, 2, alone["at"], group_world_size=2)
    assert {m["agent"] for m in again} == {keeper.pid, frozen.pid}
    assert {m["restart_count"] for m in again} == {0}
    gate.open()
    assert sorted(rank for host in (keeper, frozen) for rank in host.outcome().values) == [0, 1]


def test_a_standby_that_is_told_to_go_disturbs_nobody(job: Job, ear: Ear, gate: Gate) -> None:
    """The running nodes do not even begin a new round for it."""
    plan = meeting(job, ear, gate, (1, 2))
    running = job.start_in_order(ear, plan, plan)
    ear.hear(2, event="started", group_world_size=2)
    standby = job.start(as_store_client(plan))
    wait_for_text(standby.console_path, "stand", DEADLINE)
    standby.send_signal(signal.SIGTERM)
    assert type(standby.outcome().error).__name__ == "SignalException"
    gate.open()
    assert sorted(rank for host in running for rank in host.outcome().values) == [0, 1]
    assert len(ear.all(event="started", group_world_size=2)) == 2


def test_a_store_that_stands_still_for_a_while_stops_nobody(job: Job, ear: Ear, gate: Gate) -> None:
    """A hiccup of the store, longer than the lease, costs no round and no worker."""
    if not job.backend.dies_with_host:
        pytest.skip("this store is not served by an agent that could be frozen")
    lease = 1.0
    plan = meeting(job, ear, gate, (2, 2))
    plan = replace(plan, rdzv={**plan.rdzv, "lease_timeout": lease})
    keeper, other = job.start(as_store_host(plan)), job.start(as_store_client(plan))
    ear.hear(2, event="started")
    keeper.send_signal(signal.SIGSTOP)
    # Time itself is the subject here: several leases must pass, and nothing may come of it.
    with pytest.raises(AssertionError, match="heard"):
        ear.hear(3, seconds=2.5 * lease)
    keeper.send_signal(signal.SIGCONT)
    gate.open()
    assert sorted(rank for host in (keeper, other) for rank in host.outcome().values) == [0, 1]
    assert len(ear.all(event="started")) == 2


def test_the_end_of_the_store_is_a_clear_verdict(job: Job, ear: Ear, gate: Gate) -> None:
    """Where an agent serves the store and is killed, the others stop their workers and say what happened."""
    if not job.backend.dies_with_host:
        pytest.skip("this store outlives every agent")
    plan = meeting(job, ear, gate, (2, 2))
    keeper, other = job.start(as_store_host(plan)), job.start(as_store_client(plan))
    ear.hear(2, event="started")
    workers_there = [m["pid"] for m in ear.all(event="started", agent=other.pid)]
    keeper.kill()
    outcome = other.outcome()
    assert type(outcome.error).__name__ == "StoreLostError"
    assert str(outcome.error)
    wait_for_end(workers_there, PROMPT)


def test_a_host_that_leaves_ends_the_job_it_cannot_serve_any_more(job: Job, ear: Ear, gate: Gate) -> None:
    """The agent that serves the store is told to go; the others hear why before their store is gone for good."""
    if not job.backend.dies_with_host:
        pytest.skip("this store outlives every agent")
    plan = meeting(job, ear, gate, (1, 2))
    keeper, other = job.start_in_order(ear, *[replace(plan, rdzv={**plan.rdzv, "linger_timeout": 0.5})] * 2)
    ear.hear(2, event="started", group_world_size=2)
    keeper.send_signal(signal.SIGTERM)
    assert type(keeper.outcome().error).__name__ == "SignalException"
    assert type(other.outcome().error).__name__ == "RendezvousClosedError"
    assert "was stopped by SIGTERM" in other.console()
    wait_for_end([m["pid"] for m in ear.all(event="started")], PROMPT)


def test_an_agent_that_is_killed_takes_its_workers_children_along(job: Job, ear: Ear) -> None:
    """A worker never outlives its agent, and nor do its children, whatever session they moved to."""
    host = job.start(job.plan(workers.start_grandchild, ear.path))
    (message,) = ear.hear(1, event="grandchild")
    host.kill()
    wait_for_end([message["pid"], message["child"]], PROMPT)
