"""Laws about ranks, for nodes of any roles and sizes: ranks are dense, and all nodes agree on them.

The shapes come from Hypothesis with a fixed seed, so that a law that is broken stays broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..records import Assignment, NodeRecord
from ..rendezvous import assign_ranks
from ._abilities import Ability, LawBrokenError
from ._law import Tier, law
from ._membership_laws import require_one_world
from ._subject import Subject, join_all, require

_ROLES = ("master", "trainer", "ps")
Shape = tuple[str, int]


def require_ranks(assignments: Sequence[Assignment]) -> None:
    """Raise LawBrokenError unless ``assignments`` are all the places of one round."""
    assignments = sorted(assignments, key=lambda assignment: assignment.group_rank)
    groups = [assignment.group_rank for assignment in assignments]
    require(groups == list(range(len(assignments))), f"the group ranks are {groups}")
    world = sum(assignment.local_world_size for assignment in assignments)
    ranks = [
        assignment.first_rank + local for assignment in assignments for local in range(assignment.local_world_size)
    ]
    require(ranks == list(range(world)), f"the global ranks, by group rank, are {ranks}")
    require(
        {assignment.world_size for assignment in assignments} == {world},
        f"members get different sizes of a world of {world}",
    )
    for role in {assignment.role for assignment in assignments}:
        own = [assignment for assignment in assignments if assignment.role == role]
        size = sum(assignment.local_world_size for assignment in own)
        found = sorted(
            assignment.first_role_rank + local for assignment in own for local in range(assignment.local_world_size)
        )
        require(found == list(range(size)), f"the ranks within the role {role!r} are {found}")
        require(
            {assignment.role_world_size for assignment in own} == {size},
            f"members get different sizes of the role {role!r}",
        )


def _for_shapes(count: int, largest: int, test: Callable[[list[Shape]], None]) -> None:
    """Run ``test`` with ``count`` sets of up to ``largest`` nodes, each a role and a local world size."""
    try:
        from hypothesis import (  # an optional dependency
            HealthCheck,
            Phase,
            given,
            settings,
            strategies as st,  # the same
        )
    except ImportError:
        raise LawBrokenError(
            "it cannot be tried without Hypothesis; install it with: pip install 'quorate-core[testing]'"
        ) from None
    shapes = st.lists(st.tuples(st.sampled_from(_ROLES), st.integers(1, 8)), min_size=1, max_size=largest)
    run: Any = given(shapes)(test)
    settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if count < 50 else [Phase.generate, Phase.shrink],
    )(run)()


@law(Tier.RANKS, Ability.STORE)
def ranks_are_dense_for_any_nodes(subject: Subject) -> None:
    """For nodes of any roles and sizes, global ranks and ranks within roles count from 0 without gaps, and the ranks of
    one node are consecutive.

    The order of nodes comes from the hook decide_ranks of the installed plugins: it must answer every member once.
    """

    def test(shapes: list[Shape]) -> None:
        nodes = [NodeRecord(f"n{index}", role, size) for index, (role, size) in enumerate(shapes)]
        order = subject.host.decide("ranks", nodes, [])
        problems = [text for (_, hook), text in subject.host.misbehaving.items() if hook == "quorate_decide_ranks"]
        require(not problems, "; ".join(problems))
        require(sorted(order) == sorted(node.node_id for node in nodes), f"decide_ranks answers {order}")
        require_ranks(list(assign_ranks(nodes, order, round_number=0, restart_count=0).values()))

    _for_shapes(60, 12, test)


@law(Tier.RANKS, Ability.SEVERAL_NODES)
def unequal_nodes_are_ranked_together(subject: Subject) -> None:
    """Nodes of different roles and sizes form one world on the backend, and each keeps its role and size.

    A handler of its own may leave the ranks of workers to the core; then only the group ranks are checked.
    """

    def test(shapes: list[Shape]) -> None:
        with subject:
            job, size = subject.job(), len(shapes)
            members = [job.member(size, size, role=role, local_world_size=local) for role, local in shapes]
            infos = join_all(members, subject.timeout)
            require_one_world(infos)
            assignments = [info.assignment for info in infos if info.assignment is not None]
            if len(assignments) == size:
                require_ranks(assignments)
                assigned = [(assignment.role, assignment.local_world_size) for assignment in assignments]
                require(assigned == shapes, f"nodes that joined as {shapes} are assigned {assigned}")

    _for_shapes(4, 4, test)
