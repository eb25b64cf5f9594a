"""The agent and its workers when all goes well: values, arguments, addresses, process groups."""

from __future__ import annotations

import pytest

from tests import workers
from tests.harness import Job, Outcome


def merged(outcomes: list[Outcome]) -> dict[int, object]:
    """All agents' return values; no rank may come twice."""
    values: dict[int, object] = {}
    for outcome in outcomes:
        assert not values.keys() & outcome.values.keys()
        values |= outcome.values
    return values


def test_return_values_are_keyed_by_global_rank_over_all_agents(job: Job) -> None:
    """Each value arrives under its global rank, ``None`` as ``None``, arguments unchanged."""
    given = (None, {"a": [1, 2]}, b"\x00\xff", "${local", 4.5)
    outcomes = job.run(*(job.plan(workers.give, *given, nodes=(2, 2), workers=count) for count in (2, 3)))
    assert merged(outcomes) == dict(enumerate(given))
    assert {outcome.state for outcome in outcomes} == {"SUCCEEDED"}
    assert all(outcome.total_execution_time > 0 for outcome in outcomes)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver", "warm"])
def test_every_start_method_gives_the_same(job: Job, method: str) -> None:
    """However a function is started."""
    plan = job.plan(workers.give, None, ("a", 1), workers=2, agent={"start_method": method})
    (outcome,) = job.run(plan)
    assert outcome.values == {0: None, 1: ("a", 1)}


def test_a_tensor_comes_back_whole(job: Job) -> None:
    """A tensor of 100 x 100 arrives by value."""
    import torch

    (outcome,) = job.run(job.plan(workers.give_tensor, 100, workers=2, agent={"start_method": "fork"}))
    assert set(outcome.values) == {0, 1}
    for rank, tensor in outcome.values.items():
        assert torch.equal(tensor, torch.full((100, 100), float(rank)))


def test_a_master_address_in_the_spec_wins(job: Job) -> None:
    """Whatever rendezvous says, workers see the address and the port of the spec."""
    spec = {"master_addr": "198.51.100.7", "master_port": 1234}
    names = ("MASTER_ADDR", "MASTER_PORT")
    plan = job.plan(workers.environment, *names, nodes=(2, 2), spec=spec)
    values = merged(job.run(plan, plan))
    assert values == {rank: dict(zip(names, ("198.51.100.7", "1234"), strict=True)) for rank in (0, 1)}


@pytest.mark.parametrize("sizes", [(2,), (4, 4), (1, 2, 3)], ids=["1x2", "2x4", "1+2+3"])
def test_workers_form_a_process_group_from_their_environment(job: Job, sizes: tuple[int, ...]) -> None:
    """Gloo's ``all_reduce`` gives the sum of the ranks; result keys are exactly 0..world_size-1."""
    nodes = (len(sizes), len(sizes))
    # The agents' process has torch: their workers need not import it again.
    forked = {"agent": {"start_method": "fork"}}
    values = merged(job.run(*(job.plan(workers.all_reduce, nodes=nodes, workers=size, **forked) for size in sizes)))
    world = sum(sizes)
    assert values == {rank: (sum(range(world)), world) for rank in range(world)}
