"""Two roles that call each other through torch's RPC."""

from __future__ import annotations

from tests import workers
from tests.harness import Job


def test_one_role_calls_a_function_of_the_other(job: Job) -> None:
    """The master calls a function on the worker and returns its answer."""
    forked = {"start_method": "fork"}  # from agents that have torch
    master = job.plan(workers.rpc_master, "worker0", nodes=(2, 2), role="master", agent=forked)
    worker = job.plan(workers.rpc_worker, "worker0", nodes=(2, 2), role="worker", agent=forked)
    outcomes = job.run(master, worker)
    assert list(outcomes[0].values.values()) == [(42, "worker")]
    assert list(outcomes[1].values.values()) == [None]
