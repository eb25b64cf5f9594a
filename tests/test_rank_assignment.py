"""Ranks over agents of several roles and sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

from tests import workers
from tests.harness import Job

HETEROGENEOUS = (("master", 8), ("trainer", 1), ("trainer", 2), ("trainer", 3), ("trainer", 4), ("ps", 5), ("ps", 2))
HOMOGENEOUS = (("master", 1), *[("trainer", 4)] * 4, *[("ps", 3)] * 2)


@pytest.mark.slow(reason="some 25 interpreters start on as few cores as there are")
@pytest.mark.parametrize("agents", [HETEROGENEOUS, HOMOGENEOUS], ids=["heterogeneous", "homogeneous"])
def test_ranks_are_dense_and_agree_everywhere(job: Job, agents: Sequence[tuple[str, int]]) -> None:
    """Dense global and role ranks, consecutive within each agent; all see the same world."""
    nodes = (len(agents), len(agents))
    plans = [job.plan(workers.environment, nodes=nodes, role=role, workers=count) for role, count in agents]
    world = sum(count for _, count in agents)
    role_world = {role: sum(count for name, count in agents if name == role) for role, _ in agents}
    all_ranks: list[int] = []
    role_ranks: dict[str, list[int]] = defaultdict(list)
    group_ranks: list[int] = []
    for (role, count), outcome in zip(agents, job.run(*plans), strict=True):
        seen = sorted(outcome.values.items())
        global_here = [rank for rank, _ in seen]
        role_here = [int(v["ROLE_RANK"]) for _, v in seen]
        assert len(seen) == count
        assert global_here == list(range(global_here[0], global_here[0] + count))
        assert role_here == list(range(role_here[0], role_here[0] + count))
        assert [int(v["LOCAL_RANK"]) for _, v in seen] == list(range(count))
        for rank, v in seen:
            assert (v["RANK"], v["ROLE_NAME"], v["LOCAL_WORLD_SIZE"]) == (str(rank), role, str(count))
            assert (v["WORLD_SIZE"], v["ROLE_WORLD_SIZE"]) == (str(world), str(role_world[role]))
            assert v["GROUP_WORLD_SIZE"] == str(len(agents))
        (group_rank,) = {int(v["GROUP_RANK"]) for _, v in seen}
        group_ranks.append(group_rank)
        all_ranks += global_here
        role_ranks[role] += role_here
    assert sorted(all_ranks) == list(range(world))
    assert sorted(group_ranks) == list(range(len(agents)))
    assert {role: sorted(ranks) for role, ranks in role_ranks.items()} == {
        role: list(range(size)) for role, size in role_world.items()
    }


def test_a_claimed_node_rank_is_given(job: Job) -> None:
    """With ``node_rank``, agents get the group rank that they claim, whoever came first."""
    plans = [
        job.plan(workers.environment, "GROUP_RANK", nodes=(3, 3), spec={"node_rank": claimed}) for claimed in (2, 0, 1)
    ]
    for claimed, outcome in zip((2, 0, 1), job.run(*plans), strict=True):
        assert outcome.values == {claimed: {"GROUP_RANK": str(claimed)}}


def test_a_node_rank_that_is_claimed_twice_is_refused(job: Job) -> None:
    """A duplicate node rank gives one clear error on every node."""
    plan = job.plan(workers.environment, nodes=(2, 2), spec={"node_rank": 0}, rdzv={"join_timeout": 20.0})
    outcomes = job.run(plan, plan)
    assert all(outcome.error is not None for outcome in outcomes)
    assert any("node rank 0 is claimed twice" in str(outcome.error) for outcome in outcomes)
