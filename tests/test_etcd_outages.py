"""What agents and workers see of an etcd that goes away: nothing, if it comes back in time; else one clear error.

Each test runs on a cluster of three members of its own, over both of etcd's APIs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorate.cli import ExitCode
from quorate.testing import settles
from quorate_rendezvous_etcd import EtcdServer
from tests import workers
from tests.backends import BACKENDS
from tests.etcd_eyes import members_of
from tests.harness import DEADLINE, Ear, Gate, Job, Plan, processes_with, wait_for_end

LEASE = 2.0
ROOT = str(Path(__file__).resolve().parent.parent)


@pytest.fixture(params=["etcd", "etcd-v2"])
def api(request: pytest.FixtureRequest) -> str:
    """The backend: API v3, or API v2."""
    return str(request.param)


@pytest.fixture
def cluster(api: str) -> Iterator[EtcdServer]:
    """Three members that belong to this test alone."""
    with EtcdServer(members=3, enable_v2=api == "etcd-v2") as server:
        yield server


@pytest.fixture
def job(api: str, cluster: EtcdServer, tmp_path: Path, _fork_server: None) -> Iterator[Job]:
    """A job on ``cluster``; its processes must be gone at the end."""
    job = Job(BACKENDS[api], cluster.get_endpoint(), tmp_path)
    yield job
    job.close()
    wait_for_end(list(processes_with(job.token)), 10.0)


def meeting(job: Job, ear: Ear, gate: Gate, nodes: tuple[int, int], **rdzv: object) -> Plan:
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=nodes)
    return replace(plan, rdzv={**plan.rdzv, "lease_timeout": LEASE, **rdzv})


def stop_all(cluster: EtcdServer) -> None:
    for index in range(3):
        cluster.kill(index)


def start_all(cluster: EtcdServer) -> None:
    for index in range(3):
        cluster.restart(index, wait=False)
    cluster.await_ready()


def test_a_leader_that_dies_costs_no_restart(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    plan = meeting(job, ear, gate, (2, 2))
    hosts = [job.start(plan), job.start(plan)]
    # Somewhere between the first ticket and the seal.
    first = cluster.leader()
    cluster.kill(first)
    ear.hear(2, event="started")
    cluster.restart(first)
    cluster.kill(cluster.leader())
    gate.open()
    assert sorted(rank for host in hosts for rank in host.outcome().values) == [0, 1]
    assert len(ear.all(event="started")) == 2, "healthy workers were left alone"


@pytest.mark.slow(reason="an outage of several leases is waited for")
def test_workers_outlive_an_outage_of_the_whole_cluster(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    """All members are away for longer than every lease; the workers run on, and the job ends well.

    Variable ``QUORATE_TEST_OUTAGE_SECONDS``: how long, for whoever wants it longer.
    """
    plan = meeting(job, ear, gate, (2, 2), member_ttl=2)
    hosts = [job.start(plan), job.start(plan)]
    ear.hear(2, event="started")
    stop_all(cluster)
    # Time itself is the subject: nothing may come of it.
    with pytest.raises(AssertionError, match="heard"):
        ear.hear(3, seconds=float(os.environ.get("QUORATE_TEST_OUTAGE_SECONDS", 2.5 * LEASE)))
    start_all(cluster)
    gate.open()
    assert sorted(rank for host in hosts for rank in host.outcome().values) == [0, 1]
    assert len(ear.all(event="started")) == 2


def test_an_outage_that_lasts_too_long_is_a_clear_error(
    cluster: EtcdServer, job: Job, ear: Ear, gate: Gate, tmp_path: Path
) -> None:
    """Past ``store_outage_timeout`` the workers are stopped, the error says why, and the exit code is 3."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom tests import workers\nworkers.meet(*sys.argv[1:])\n")
    conf = f"lease_timeout={LEASE},store_outage_timeout=3,operation_timeout=1,key_ttl=60,last_call_timeout=0.3"
    argv = [sys.executable, "-m", "quorate", "run", "--nnodes=2", f"--rdzv-backend={job.backend.name}"]
    argv += [f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.token}", f"--rdzv-conf={conf}"]
    environment = {**os.environ, **job.environment, "PYTHONPATH": ROOT}
    agents = [
        subprocess.Popen([*argv, str(script), ear.path, gate.path], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        started = [message["pid"] for message in ear.hear(2, event="started")]
        began = time.monotonic()
        stop_all(cluster)
        for agent in agents:
            _, errors = agent.communicate(timeout=DEADLINE)
            assert time.monotonic() - began >= 3.0
            assert agent.returncode == ExitCode.RENDEZVOUS == 3, errors
            assert "could not be reached for 3 s" in errors
            assert "Traceback" not in errors
        wait_for_end(started, 5.0)
    finally:
        for agent in agents:
            agent.kill()
            agent.communicate()


def test_a_frozen_agent_learns_that_it_was_left_out(cluster: EtcdServer, job: Job, ear: Ear, gate: Gate) -> None:
    """Past its lease, and with its entry in etcd gone too, it stops its workers before it joins again."""
    plan = job.plan(workers.meet_until_stopped, ear.path, gate.path, nodes=(2, 3))
    plan = replace(plan, rdzv={**plan.rdzv, "lease_timeout": LEASE, "member_ttl": 2})
    hosts = [job.start(plan) for _ in range(3)]
    frozen = hosts[1]
    while len(_agents(ear.all(event="started", group_world_size=3))) < 3:
        ear.hear(len(ear.heard) + 1)
    since = time.monotonic()
    frozen.send_signal(signal.SIGSTOP)
    survivors = {host.pid for host in hosts} - {frozen.pid}
    while _agents(_after(ear, since, group_world_size=2)) != survivors:
        ear.hear(len(ear.heard) + 1)
    endpoint, run_id = job.endpoint, plan.run_id
    assert settles(lambda: len(members_of(job.backend.name, endpoint, run_id)) == 2), "its entry has expired"
    again = time.monotonic()
    frozen.send_signal(signal.SIGCONT)
    while len(_agents(_after(ear, again, group_world_size=3))) < 3:
        ear.hear(len(ear.heard) + 1)
    gate.open()
    assert sorted(rank for host in hosts for rank in host.outcome().values) == [0, 1, 2]
    for host in hosts:
        _assert_one_world_at_a_time([m for m in ear.heard if m["agent"] == host.pid])


def _agents(messages: list[dict[str, Any]]) -> set[int]:
    return {message["agent"] for message in messages}


def _after(ear: Ear, since: float, **facts: Any) -> list[dict[str, Any]]:
    return [message for message in ear.all(event="started", **facts) if message["at"] > since]


def _assert_one_world_at_a_time(told: list[dict[str, Any]]) -> None:
    """No worker of this node begins before the one of the world before it has stopped."""
    running: set[int] = set()
    for message in sorted(told, key=lambda message: message["at"]):
        if message["event"] == "started":
            assert not running, json.dumps(told)
            running.add(message["pid"])
        else:
            running.remove(message["pid"])
    assert len(told) >= 3
