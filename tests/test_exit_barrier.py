"""The exit barrier: who waits for whom at the end, and for how long."""

from __future__ import annotations

import time

import pytest

from quorate import RendezvousHandler
from tests import workers
from tests.harness import DEADLINE, Ear, Gate, Job, as_store_client, as_store_host
from tests.watching import wait_for_text

#: Seconds of the exit barrier in tests whose nodes must not sit it out.
LONG = 300.0


def test_nobody_sits_in_the_barrier_after_a_failure(job: Job, ear: Ear, gate: Gate) -> None:
    """One node is in the barrier when a worker of the other fails; all exit at once.

    The promise is two monitor intervals; they are set so long here that a busy machine cannot break it.
    """
    interval = 5.0
    more = {"spec": {"monitor_interval": interval}, "agent": {"exit_barrier_timeout": LONG}, "nodes": (2, 2)}
    plan = job.plan(workers.end_or_raise, 1, ear.path, gate.path, **more)
    host = job.start(plan, plan)
    ear.hear(1, event="started")
    (done,) = ear.hear(1, event="done")
    assert done["rank"] == 0
    gate.open()
    opened = time.monotonic()
    outcomes = host.outcomes()
    ends = [outcome.ended_at for outcome in outcomes]
    assert max(ends) - min(ends) < 2 * interval
    assert max(ends) - opened < 2 * interval
    assert all(set(outcome.failed.failures) == {1} for outcome in outcomes)


@pytest.mark.parametrize("timeout", [LONG, 0.0], ids=["long", "none"])
def test_workers_may_finish_at_different_times(job: Job, ear: Ear, gate: Gate, timeout: float) -> None:
    """Inside the time-out, and with a time-out of 0, both agents succeed and return their values."""
    more = {"agent": {"exit_barrier_timeout": timeout}, "nodes": (2, 2)}
    plan = job.plan(workers.wait_for_ranks, ear.path, gate.path, 1, **more)
    hosts = [job.start(as_store_host(plan)), job.start(as_store_client(plan))]
    (late,) = ear.hear(1, event="started")
    (early,) = ear.hear(1, event="done")
    first = next(host for host in hosts if host.pid == early["agent"])
    last = next(host for host in hosts if host.pid == late["agent"])
    if timeout == 0.0 and first is not hosts[0]:
        # Without a barrier this one is gone at once, while the other's workers still run.
        assert first.outcome().values == {0: 0}
    gate.open()
    assert first.outcome().values == {0: 0}
    assert last.outcome().values == {1: 1}


def test_the_barrier_ends_at_its_time_out(job: Job, ear: Ear, gate: Gate) -> None:
    """A node waits for the others no longer than it was told to, and has succeeded nonetheless."""
    arguments = (ear.path, gate.path, 0)
    slow = job.start(as_store_host(job.plan(workers.wait_for_ranks, *arguments, nodes=(2, 2), spec={"node_rank": 0})))
    short = {"spec": {"node_rank": 1}, "agent": {"exit_barrier_timeout": 1.0}}
    quick_plan = job.plan(workers.wait_for_ranks, *arguments, nodes=(2, 2), **short)
    quick = job.start(as_store_client(quick_plan))
    outcome = quick.outcome()
    assert outcome.values == {1: 1}
    assert not ear.all(event="done", rank=0)
    gate.open()
    assert slow.outcome().values == {0: 0}


def break_the_barrier(handler: RendezvousHandler) -> None:
    """Make this node's part in the barrier raise, once it has told the others that it is done."""
    report = handler.report_done

    def report_done() -> None:
        report()
        raise OSError("the barrier is out of order")

    setattr(handler, "report_done", report_done)  # noqa: B010 - a method is replaced, which mypy would refuse


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_exception_in_the_barrier_fails_nothing(job: Job, nodes: int) -> None:
    """The workers have succeeded; what goes wrong after that does not change it."""
    change = "tests.test_exit_barrier:break_the_barrier"
    plan = job.plan(workers.give, "value", nodes=(nodes, nodes), change_handler=change)
    outcomes = job.run(*[plan] * nodes)
    assert {rank: value for outcome in outcomes for rank, value in outcome.values.items()} == dict.fromkeys(
        range(nodes), "value"
    )


def test_the_loss_of_the_store_in_the_barrier_fails_nothing(job: Job, ear: Ear, gate: Gate) -> None:
    """The agent that serves the store is killed while another one waits for it in the barrier."""
    if not job.backend.dies_with_host:
        pytest.skip("this store outlives every agent")
    plan = job.plan(workers.wait_for_ranks, ear.path, gate.path, 0, nodes=(2, 2), spec={"node_rank": 0})
    other = job.plan(workers.wait_for_ranks, ear.path, gate.path, 0, nodes=(2, 2), spec={"node_rank": 1})
    keeper, waiting = job.start(as_store_host(plan)), job.start(as_store_client(other), QUORATE_LOG="debug")
    ear.hear(1, event="started", rank=0)
    wait_for_text(waiting.console_path, "all workers of this node have succeeded", DEADLINE)
    keeper.kill()
    assert waiting.outcome().values == {1: 1}
