"""Values of variables as people and schedulers write them: times, addresses and ranks."""

from __future__ import annotations

import pytest
from cluster_places import Place, find, found

from quorate.clock import wall_seconds

STEP = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}


def test_where_squeue_cannot_be_run_a_variable_of_slurm_says_when_the_job_ends() -> None:
    for end, least, most in ((1, 0.0, 0.0), (int(wall_seconds()) + 100, 60.0, 100.0)):
        left = found("slurm", {**STEP, "SLURM_JOB_END_TIME": str(end)}).seconds_left
        assert left is not None
        assert least <= (left() or 0.0) <= most
    asked = {("squeue", "--noheader", "--jobs=4711", "--format=%L %r"): "1:30 None\n"}  # it was given more time
    job = found("slurm", {**STEP, "SLURM_JOB_END_TIME": "1"}, Place(outputs=asked))
    assert job.seconds_left is not None
    assert (job.seconds_left() or 0.0) > 60.0


@pytest.mark.parametrize(
    ("changed", "host", "problem"),
    [
        ({"MASTER_ADDR": " head\n"}, "head", ""),
        ({"MASTER_ADDR": "[fd00::1]"}, "fd00::1", ""),
        ({"MASTER_ADDR": "fd00::1"}, "fd00::1", ""),
        ({"MASTER_ADDR": "head:29500"}, "", "MASTER_ADDR=head:29500 is not a host"),
        ({"MASTER_ADDR": "tcp://head"}, "", "MASTER_ADDR=tcp://head is not a host"),
        ({"RANK": "-1"}, "head", "RANK=-1 is not the rank of one of 2 nodes"),
        ({"RANK": "head-1"}, "head", "RANK=head-1 is not the rank"),
    ],
)
def test_values_of_the_bare_contract_that_people_write(changed: dict[str, str], host: str, problem: str) -> None:
    environment = {"MASTER_ADDR": "head", "MASTER_PORT": "29600", "RANK": "1", "WORLD_SIZE": "2", **changed}
    job = found("variables", environment)
    assert job.endpoint_host == host
    assert job.problem.startswith(problem)
    assert bool(job.problem) == bool(problem)
    assert find("variables", {**environment, "RANK": ""}) is None  # left from elsewhere
