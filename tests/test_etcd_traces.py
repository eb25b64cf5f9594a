"""What a job leaves in etcd however it ended, and what a second job with its run id can do to it: nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quorate.testing import settles
from tests import workers
from tests.backends import BACKENDS, Backend
from tests.etcd_eyes import keys_of, leases_of, members_of
from tests.harness import DEADLINE, Ear, Gate, Job, Plan
from tests.watching import wait_for_text


@pytest.fixture(params=["etcd", "etcd-v2"])
def backend(request: pytest.FixtureRequest, _serve: Callable[[Backend], None]) -> Backend:
    """The backend over each of etcd's APIs."""
    _serve(BACKENDS[request.param])
    return BACKENDS[request.param]


@pytest.fixture
def leases(job: Job) -> Iterator[set[str]]:
    """The leases before the job; in the end those of the job must be gone."""
    before = leases_of(job.endpoint)
    yield before
    assert settles(lambda: leases_of(job.endpoint) <= before)


def _keys(job: Job, plan: Plan) -> list[str]:
    return keys_of(job.backend.name, job.endpoint, plan.run_id)


def test_a_job_that_has_ended_well_leaves_nothing(job: Job, ear: Ear, gate: Gate, leases: set[str]) -> None:
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(2, 2))
    host = job.start(plan, plan)
    ear.hear(2, event="started")
    assert _keys(job, plan)
    assert len(members_of(job.backend.name, job.endpoint, plan.run_id)) == 2
    gate.open()
    assert sorted(rank for outcome in host.outcomes() for rank in outcome.values) == [0, 1]
    assert _keys(job, plan) == []


def test_a_job_that_has_failed_leaves_nothing(job: Job, leases: set[str]) -> None:
    plan = job.plan(workers.raise_on, [1], 9, nodes=(2, 2), max_restarts=1)
    assert all(outcome.failed for outcome in job.run(plan, plan))
    assert _keys(job, plan) == []


def test_a_job_that_was_stopped_by_a_signal_leaves_nothing(job: Job, ear: Ear, leases: set[str]) -> None:
    plan = job.plan(workers.trap, ear.path, True, nodes=(2, 2))
    hosts = [job.start(plan), job.start(plan)]
    ear.hear(2, event="started")
    for host in hosts:
        host.send_signal(signal.SIGTERM)
    assert [type(host.outcome().error).__name__ for host in hosts] == ["SignalException"] * 2
    assert _keys(job, plan) == []


@pytest.mark.parametrize("survivors", [0, 1])
def test_what_a_killed_agent_leaves_goes_by_itself(
    job: Job, ear: Ear, gate: Gate, leases: set[str], survivors: int
) -> None:
    """Its own entry ends after ``member_ttl``, everything else after ``key_ttl`` if nobody else removes it.

    API v2 of etcd 3.5 needs somebody to: the next job.
    """
    short = {"lease_timeout": 1.0, "store_outage_timeout": 2.0, "member_ttl": 2, "key_ttl": 5}
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 2), rdzv=short)
    hosts = [job.start(plan), job.start(plan)]
    ear.hear(2, event="started", group_world_size=2)
    for host in hosts[survivors:]:
        host.kill()
    gate.open()
    for host in hosts[:survivors]:
        assert host.outcome().values
    signs = ("/alive", "/member/", "/members/")
    assert settles(lambda: not any(sign in key for key in _keys(job, plan) for sign in signs)), _keys(job, plan)
    (other,) = job.run(job.plan(workers.give, 1, run_id=f"{plan.run_id}-next"))
    assert other.values == {0: 1}
    assert settles(lambda: _keys(job, plan) == []), _keys(job, plan)


def test_a_job_of_another_size_with_the_same_run_id_is_refused(job: Job, ear: Ear, gate: Gate) -> None:
    """The second is told which id is taken, and the first sees nothing of it."""
    first = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 1))
    host = job.start(first)
    ear.hear(1, event="started")
    second = job.start(replace(first, nodes=(1, 2), entrypoint=workers.give, args=("another job's",))).outcome()
    assert type(second.error).__name__ == "RendezvousStateError"
    assert first.run_id in str(second.error)
    gate.open()
    assert host.outcome().values == {0: 0}
    assert len(ear.all(event="started")) == 1


def test_a_job_of_the_same_size_with_the_same_run_id_stands_by(job: Job, ear: Ear, gate: Gate, tmp_path: Path) -> None:
    """It cannot be told from a late node of the first: it says that it stands by, and runs nothing."""
    (tmp_path / "other").mkdir()
    first = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 1))
    host = job.start(first)
    ear.hear(1, event="started")
    other = Ear(tmp_path / "other/ear")
    late = job.start(replace(first, args=(other.path, gate.path)))
    wait_for_text(late.console_path, "stand", DEADLINE)
    gate.open()
    assert host.outcome().values == {0: 0}
    assert late.outcome().values == {}
    with pytest.raises(AssertionError, match="heard"):
        other.hear(1, seconds=0.0)
    other.close()
    assert _keys(job, first) == []
