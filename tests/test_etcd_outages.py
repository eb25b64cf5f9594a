"""What agents and workers see of an etcd that goes away: nothing, if it comes back in time; else one clear error."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quorate_rendezvous_etcd import EtcdServer
from tests import workers
from tests.backends import BACKENDS
from tests.harness import DEADLINE, Ear, Gate, Job, Plan, processes_with, wait_for_end

LEASE = 2.0


@pytest.fixture
def cluster() -> Iterator[EtcdServer]:
    """Three members that belong to this test alone."""
    with EtcdServer(members=3) as server:
        yield server


@pytest.fixture
def job(cluster: EtcdServer, tmp_path: Path, _fork_server: None) -> Iterator[Job]:
    """A job on ``cluster``; its processes must be gone at the end."""
    job = Job(BACKENDS["etcd"], cluster.get_endpoint(), tmp_path)
    yield job
    job.close()
    wait_for_end(list(processes_with(job.token)), 10.0)


def meeting(job: Job, ear: Ear, gate: Gate, nodes: tuple[int, int], **rdzv: object) -> Plan:
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=nodes)
    return replace(plan, rdzv={**plan.rdzv, "lease_timeout": LEASE, **rdzv})


def test_a_leader_that_dies_costs_no_restart(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    plan = meeting(job, ear, gate, (2, 2))
    hosts = [job.start(plan), job.start(plan)]
    # Somewhere between the first ticket and the seal.
    cluster.kill(cluster.leader())
    ear.hear(2, event="started")
    for victim in set(range(3)) - {cluster.leader()}:
        cluster.restart(victim)
    cluster.kill(cluster.leader())
    gate.open()
    assert sorted(rank for host in hosts for rank in host.outcome().values) == [0, 1]
    assert len(ear.all(event="started")) == 2, "healthy workers were left alone"


@pytest.mark.slow(reason="an outage of many leases is waited for")
def test_workers_outlive_an_outage_of_the_whole_cluster(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    """DESIGN law 8: all members are away for ten leases; the workers run on, and the job ends well."""
    plan = meeting(job, ear, gate, (2, 2))
    hosts = [job.start(plan), job.start(plan)]
    ear.hear(2, event="started")
    for index in range(3):
        cluster.kill(index)
    # Time itself is the subject: nothing may come of it.
    with pytest.raises(AssertionError, match="heard"):
        ear.hear(3, seconds=10 * LEASE)
    for index in range(3):
        cluster.restart(index, wait=False)
    cluster.await_ready()
    gate.open()
    assert sorted(rank for host in hosts for rank in host.outcome().values) == [0, 1]
    assert len(ear.all(event="started")) == 2


def test_an_outage_that_lasts_too_long_is_a_clear_error(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    """D: past ``store_outage_timeout`` the workers are stopped, and the error says since when and what was tried."""
    plan = meeting(job, ear, gate, (2, 2), store_outage_timeout=3.0, key_ttl=60)
    hosts = [job.start(plan), job.start(plan)]
    started = [message["pid"] for message in ear.hear(2, event="started")]
    began = time.monotonic()
    for index in range(3):
        cluster.kill(index)
    outcomes = [host.outcome() for host in hosts]
    for outcome in outcomes:
        assert type(outcome.error).__name__ == "StoreUnavailableError"
        assert "could not be reached for 3 s" in str(outcome.error)
        assert outcome.ended_at - began >= 3.0
    wait_for_end(started, 5.0)


def test_a_frozen_agent_learns_that_it_was_left_out(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    """DESIGN 4: past its lease, and with its etcd lease gone too, it stops its workers before it joins again."""
    plan = meeting(job, ear, gate, (1, 2), member_ttl=2)
    hosts = job.start_in_order(ear, plan, plan)
    frozen, keeper = hosts
    ear.hear(2, event="started", group_world_size=2)
    (old,) = [message["pid"] for message in ear.all(event="started", group_world_size=2, agent=frozen.pid)]
    since = time.monotonic()
    frozen.send_signal(signal.SIGSTOP)
    while not [m for m in ear.all(event="started", group_world_size=1, agent=keeper.pid) if m["at"] > since]:
        ear.hear(len(ear.heard) + 1)
    frozen.send_signal(signal.SIGCONT)
    wait_for_end([old], DEADLINE)
    while len([m for m in ear.all(event="started", group_world_size=2) if m["at"] > since]) < 2:
        ear.hear(len(ear.heard) + 1)
    gate.open()
    assert sorted(rank for host in hosts for rank in host.outcome().values) == [0, 1]
