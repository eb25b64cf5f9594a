"""What a worker finds in its environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests import workers
from tests.harness import Job


def run_and_collect(job: Job, *plans: Any, **environment: str) -> dict[int, Mapping[str, str | None]]:
    seen: dict[int, Mapping[str, str | None]] = {}
    for outcome in job.run(*plans, **environment):
        seen |= outcome.values
    return seen


def test_every_worker_has_the_whole_contract(job: Job) -> None:
    """All variables are there, and say the same world on all nodes."""
    first = job.plan(workers.environment, nodes=(2, 2), role="master", workers=1, max_restarts=7)
    second = job.plan(workers.environment, nodes=(2, 2), role="trainer", workers=2, max_restarts=7)
    seen = run_and_collect(job, first, second)
    assert set(seen) == {0, 1, 2}
    shared = {
        "WORLD_SIZE": "3",
        "GROUP_WORLD_SIZE": "2",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "7",
        "TORCHELASTIC_RUN_ID": first.run_id,
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    for rank, variables in seen.items():
        assert None not in variables.values(), variables
        assert shared.items() <= variables.items()
        assert variables["RANK"] == str(rank)
        assert variables["TORCHELASTIC_USE_AGENT_STORE"] in ("True", "False")
        assert variables["TORCHELASTIC_ERROR_FILE"] not in ("", None)
    trainers = [variables for variables in seen.values() if variables["ROLE_NAME"] == "trainer"]
    names = ("LOCAL_RANK", "ROLE_RANK", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")
    assert sorted(tuple(v[name] for name in names) for v in trainers) == [("0", "0", "2", "2"), ("1", "1", "2", "2")]
    assert len({(v["MASTER_ADDR"], v["MASTER_PORT"]) for v in seen.values()}) == 1
    assert len({v["TORCHELASTIC_ERROR_FILE"] for v in seen.values()}) == 3


@pytest.mark.parametrize(("already", "expected"), [(None, "1"), ("0", "0")])
def test_a_setting_of_the_agent_environment_wins(job: Job, already: str | None, expected: str) -> None:
    """TORCH_NCCL_ASYNC_ERROR_HANDLING is 1 unless the agent's environment says otherwise."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    given = {} if already is None else {name: already}
    seen = run_and_collect(job, job.plan(workers.environment, name), **given)
    assert seen == {0: {name: expected}}


@pytest.mark.parametrize(
    ("count", "already", "expected"), [(1, None, None), (2, None, "1"), (2, "6", "6")], ids=["alone", "two", "set"]
)
def test_threads_of_workers_that_share_a_node(job: Job, count: int, already: str | None, expected: str | None) -> None:
    """OMP_NUM_THREADS is 1 where several workers share a node and nobody said otherwise."""
    plan = job.plan(workers.environment, "OMP_NUM_THREADS", workers=count)
    given = {} if already is None else {"OMP_NUM_THREADS": already}
    seen = run_and_collect(job, plan, **given)
    assert seen == {rank: {"OMP_NUM_THREADS": expected} for rank in range(count)}


@pytest.mark.parametrize(("visible", "own"), [(None, ("0", "1")), ("4,7", ("4", "7"))])
def test_virtual_local_ranks_see_one_device_each(job: Job, visible: str | None, own: tuple[str, str]) -> None:
    """LOCAL_RANK is 0 everywhere and CUDA_VISIBLE_DEVICES holds the worker's own device only."""
    names = ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "RANK")
    plan = job.plan(workers.environment, *names, workers=2, spec={"virtual_local_rank": True})
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    seen = run_and_collect(job, plan, **given)
    assert seen == {rank: dict(zip(names, ("0", own[rank], str(rank)), strict=True)) for rank in (0, 1)}


def test_the_environment_of_the_agent_and_of_the_spec_reach_workers(job: Job) -> None:
    """What a worker needs besides is inherited, and the spec may add to it."""
    spec = {"environment": {"FROM_SPEC": "spec", "BOTH": "spec"}}
    plan = job.plan(workers.environment, "FROM_SPEC", "FROM_AGENT", "BOTH", spec=spec)
    seen = run_and_collect(job, plan, FROM_AGENT="agent", BOTH="agent")
    assert seen == {0: {"FROM_SPEC": "spec", "FROM_AGENT": "agent", "BOTH": "spec"}}


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver", "warm"])
def test_workers_do_not_get_the_job_token_however_they_are_started(job: Job, method: str) -> None:
    """QUORATE_JOB_TOKEN and QUORATE_JOB_TOKEN_FILE stay with the agent unless the spec asks for them."""
    names, token = ("QUORATE_JOB_TOKEN", "FROM_AGENT"), "0123456789abcdef"
    for share, expected in ((False, None), (True, token)):
        agent, spec = {"start_method": method}, {"share_job_token": share}
        plan = job.plan(workers.environment, *names, workers=2, agent=agent, spec=spec)
        seen = run_and_collect(job, plan, QUORATE_JOB_TOKEN=token, FROM_AGENT="agent")
        assert seen == {rank: {names[0]: expected, names[1]: "agent"} for rank in (0, 1)}
