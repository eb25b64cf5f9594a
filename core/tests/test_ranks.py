"""Rank assignment for arbitrary sets of nodes, roles and sizes, over any sequence of rounds."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from quorate.errors import UsageError
from quorate.records import Assignment, NodeRecord
from quorate.rendezvous import assign_ranks, order_nodes
from quorate.rendezvous._ranks import previous_order, select_nodes

ROLES = st.sampled_from(["master", "trainer", "ps"])
SIZES = st.lists(st.tuples(ROLES, st.integers(1, 8)), min_size=1, max_size=12)


def make_nodes(shapes: list[tuple[str, int]], prefix: str = "n") -> list[NodeRecord]:
    return [
        NodeRecord(f"{prefix}{i}", role, size, host=f"{prefix}{i}", address=f"10.0.0.{i}", port=1000 + i)
        for i, (role, size) in enumerate(shapes)
    ]


def assignments_of(nodes: list[NodeRecord], order: list[str]) -> dict[str, Assignment]:
    return assign_ranks(nodes, order, round_number=0, restart_count=0)


def check_world(nodes: list[NodeRecord], assignments: dict[str, Assignment]) -> None:
    """Global ranks exactly 0..N-1, role ranks exactly 0..n-1, consecutive within an agent, sizes equal everywhere."""
    world = sum(node.local_world_size for node in nodes)
    ranks: list[int] = []
    role_ranks: dict[str, list[int]] = {}
    for node in nodes:
        assignment = assignments[node.node_id]
        mine = range(assignment.first_rank, assignment.first_rank + node.local_world_size)
        ranks += mine
        first = assignment.first_role_rank
        role_ranks.setdefault(node.role, []).extend(range(first, first + node.local_world_size))
        assert assignment.world_size == world
        assert assignment.group_world_size == len(nodes)
        assert assignment.local_world_size == node.local_world_size
    assert sorted(ranks) == list(range(world))
    for role, found in role_ranks.items():
        assert sorted(found) == list(range(len(found)))
        assert {assignments[n.node_id].role_world_size for n in nodes if n.role == role} == {len(found)}
    assert sorted(assignment.group_rank for assignment in assignments.values()) == list(range(len(nodes)))
    first_node = next(node for node in nodes if assignments[node.node_id].group_rank == 0)
    assert {(s.master_addr, s.master_port) for s in assignments.values()} == {(first_node.address, first_node.port)}
    by_group = sorted(assignments.values(), key=lambda assignment: assignment.group_rank)
    assert [assignment.first_rank for assignment in by_group] == sorted(
        assignment.first_rank for assignment in by_group
    )


@given(SIZES, st.randoms(use_true_random=False))
def test_ranks_are_dense_and_consecutive_whatever_the_order(shapes: list[tuple[str, int]], random: object) -> None:
    nodes = make_nodes(shapes)
    order = [node.node_id for node in nodes]
    random.shuffle(order)  # type: ignore[attr-defined] # Hypothesis' own Random
    check_world(nodes, assignments_of(nodes, order))


@given(st.data())
def test_any_sequence_of_joins_losses_and_rounds_keeps_ranks_sticky(data: st.DataObject) -> None:
    """Survivors keep their group rank when the world allows; every node computes the same answer."""
    nodes = make_nodes(data.draw(SIZES))
    maximum = data.draw(st.integers(1, 14))
    old_ranks: dict[str, int] = {}
    for number in range(data.draw(st.integers(1, 6))):
        arrivals = data.draw(st.permutations(nodes))
        previous = number - 1 if number else None
        members, standbys = select_nodes(arrivals, previous, maximum)
        assert len(members) == min(maximum, len(nodes))
        assert not {n.node_id for n in members} & {n.node_id for n in standbys}
        order = order_nodes(members, previous_order(members, previous))
        assert order == order_nodes(list(members), previous_order(list(members), previous))
        assignments = assignments_of(members, order)
        check_world(members, assignments)
        survivors = [n for n in members if n.previous_round == previous and number]
        for node in survivors:
            old = old_ranks[node.node_id]
            if old < len(members):
                assert assignments[node.node_id].group_rank == old
        taken = {node.node_id for node in members}
        for node in standbys:  # a newcomer never displaces a node that has state to keep
            if node.previous_round == previous and number:
                assert all(member.previous_round == previous for member in members)
        old_ranks = {node_id: assignment.group_rank for node_id, assignment in assignments.items()}
        lost = data.draw(st.sets(st.sampled_from(sorted(n.node_id for n in nodes)), max_size=max(0, len(nodes) - 1)))
        fresh = make_nodes(data.draw(st.lists(st.tuples(ROLES, st.integers(1, 8)), max_size=3)), f"r{number}-")
        nodes = [
            evolve(node, previous_round=number, previous_rank=old_ranks[node.node_id])
            if node.node_id in taken
            else node
            for node in nodes
            if node.node_id not in lost
        ] + fresh


def test_a_replacement_takes_the_vacated_rank() -> None:
    a, b, c = make_nodes([("default", 1)] * 3)
    assert order_nodes([evolve(b, node_id="new"), c, a], ["n0", "n1", "n2"]) == ["n0", "new", "n2"]


def test_displaced_survivors_go_before_newcomers() -> None:
    nodes = [NodeRecord("new", "default", 1), NodeRecord("old3", "default", 1)]
    assert order_nodes(nodes, ["", "", "", "old3"]) == ["old3", "new"]


def test_hints_are_honoured_and_the_rest_fills_the_gaps() -> None:
    nodes = [NodeRecord("a", "d", 1), NodeRecord("b", "d", 1, rank_hint=0), NodeRecord("c", "d", 1)]
    assert order_nodes(nodes, ["c"]) == ["b", "c", "a"]


def test_a_rank_claimed_twice_names_both_claimants() -> None:
    nodes = [
        NodeRecord("a", "d", 1, host="alpha", rank_hint=1),
        NodeRecord("b", "d", 1, host="beta", rank_hint=1),
    ]
    with pytest.raises(UsageError, match=r"node rank 1 is claimed twice: by alpha .* and by beta"):
        order_nodes(nodes, [])


def test_a_claimed_rank_beyond_a_smaller_world_leaves_no_gap() -> None:
    """The job goes on without those that are lost; all have their places once all are back."""
    a, b, c, d = (NodeRecord(name, "d", 1, rank_hint=rank) for rank, name in enumerate("abcd"))
    assert order_nodes([d, b, c], list("abcd")) == ["d", "b", "c"]
    assert order_nodes([d, c], list("abcd")) == ["c", "d"]
    assert order_nodes([d, NodeRecord("new", "d", 1)], []) == ["d", "new"]
    assert order_nodes([d, c, b, a], list("dbc")) == list("abcd")
    with pytest.raises(UsageError, match="node rank 3 is claimed twice"):
        order_nodes([d, evolve(c, rank_hint=3)], [])


def test_an_order_that_is_no_permutation_is_refused() -> None:
    nodes = make_nodes([("d", 1), ("d", 1)])
    for order in (["n0"], ["n0", "n0"], ["n0", "x"], ["n0", "n1", "n1"]):
        with pytest.raises(UsageError, match="must answer every member once"):
            assignments_of(nodes, order)
