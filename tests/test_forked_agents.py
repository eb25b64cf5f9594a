"""Agents in children of a process that has used rendezvous before: forked, spawned, fork-served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from quorate import RendezvousConnectionError, RendezvousTimeoutError
from tests import workers
from tests.backends import BACKENDS, Backend, loopback_port
from tests.harness import Job, Outcome, Plan, as_store_client, as_store_host
from tests.parents import HABITS, OWN_PORT, Used, run_in_children


def used_by_parent(job: Job) -> Used:
    """The job's backend, with a store of the parent's own where agents host it."""
    return job.backend.name, OWN_PORT if job.backend.dies_with_host else job.endpoint


def one_node(job: Job, value: object) -> list[Plan]:
    """A job of one agent, whose worker returns ``value``; each is another job."""
    plan = job.plan(workers.give, value, workers=1)
    return [as_store_host(replace(plan, run_id=f"{plan.run_id}-{value}"))]


def value_of(outcome: Outcome | str) -> object:
    assert isinstance(outcome, Outcome), outcome
    (value,) = outcome.values.values()
    return value


@pytest.mark.parametrize("habit", list(HABITS))
def test_agents_run_in_forked_children_whatever_the_parent_does(job: Job, habit: str) -> None:
    rows = [one_node(job, number) for number in range(3)]
    told = run_in_children(habit, [used_by_parent(job)], "fork", rows, job.folder, job.environment)
    assert [value_of(outcome) for (outcome,) in told] == [0, 1, 2]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_agents_run_in_other_children(job: Job, method: str) -> None:
    told = run_in_children("keeps_open", [used_by_parent(job)], method, [one_node(job, 7)], job.folder, job.environment)
    assert value_of(told[0][0]) == 7


@pytest.mark.parametrize("habit", list(HABITS))
def test_a_parent_that_has_used_every_backend(every_backend: list[Used], job: Job, habit: str) -> None:
    told = run_in_children(habit, every_backend, "fork", [one_node(job, 7)], job.folder, job.environment)
    assert value_of(told[0][0]) == 7


@pytest.fixture
def every_backend(_serve: Callable[[Backend], None]) -> list[Used]:
    """All backends, as a parent uses them."""
    used = []
    for backend in BACKENDS.values():
        _serve(backend)
        with backend.fresh_endpoint() as endpoint:
            used.append((backend.name, OWN_PORT if backend.dies_with_host else endpoint))
    return used


@pytest.mark.parametrize("habit", list(HABITS))
def test_the_agents_of_one_job_in_several_children(job: Job, habit: str) -> None:
    plan = job.plan(workers.give, "a", "b", "c", nodes=(3, 3), workers=1)
    row = [as_store_host(plan), as_store_client(plan), as_store_client(plan)]
    (told,) = run_in_children(habit, [used_by_parent(job)], "fork", [row], job.folder, job.environment)
    assert sorted(str(value_of(outcome)) for outcome in told) == ["a", "b", "c"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_failure_in_a_child_is_told_to_its_parent(job: Job, method: str) -> None:
    rows = [[as_store_host(job.plan(workers.raise_on, [0], 1))]]
    ((told,),) = run_in_children("keeps_open", [used_by_parent(job)], method, rows, job.folder, job.environment)
    assert isinstance(told, Outcome), told
    assert list(told.failed.failures) == [0]


def test_a_store_that_is_not_there_is_told_to_the_parent(job: Job) -> None:
    plan = job.plan(workers.give, 1, rdzv={"connect_timeout": 0.5, "join_timeout": 2.0})
    with loopback_port() as nowhere:
        rows = [[as_store_client(replace(plan, endpoint=nowhere))]]
        ((told,),) = run_in_children("keeps_open", [used_by_parent(job)], "fork", rows, job.folder, job.environment)
    assert isinstance(told, Outcome), told
    assert isinstance(told.error, (RendezvousConnectionError, RendezvousTimeoutError))
    assert nowhere.rpartition(":")[2] in str(told.error)
