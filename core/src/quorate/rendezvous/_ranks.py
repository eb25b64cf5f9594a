"""Rank assignment: from an ordered set of nodes to everyone's ranks, and the default order.  Pure functions.

Ranks are dense by construction: group ranks follow the order, an agent's global ranks are consecutive, and so are
its ranks within its role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import UsageError
from ..records import Assignment, NodeRecord


def order_nodes(nodes: Sequence[NodeRecord], previous: Sequence[str]) -> list[str]:
    """Return the node ids by group rank: hints first, then survivors in their old places, then the rest.

    Arguments:
        nodes: the round's members in the order in which they came.
        previous: the previous round's node ids by group rank; empty strings for members that are not known.

    A claimed rank that a world of this size does not have (others were lost) counts as an old place.

    Raises:
        UsageError: two nodes claim one rank.
    """
    size = len(nodes)
    places: list[str | None] = [None] * size
    displaced: list[tuple[int, str]] = []
    claims: dict[int, NodeRecord] = {}
    for node in nodes:
        hint = node.rank_hint
        if hint is None:
            continue
        other = claims.setdefault(hint, node)
        if other is not node:
            raise UsageError(
                f"node rank {hint} is claimed twice: by {_name(other)} and by {_name(node)}; "
                "give each node its own --node-rank"
            )
        if 0 <= hint < size:
            places[hint] = node.node_id
        else:
            displaced.append((hint, node.node_id))
    old_rank = {node_id: rank for rank, node_id in enumerate(previous) if node_id}
    free = [node for node in nodes if node.rank_hint is None]
    newcomers: list[str] = []
    for node in free:
        rank = old_rank.get(node.node_id)
        if rank is None:
            newcomers.append(node.node_id)
        elif rank < size and places[rank] is None:
            places[rank] = node.node_id
        else:
            displaced.append((rank, node.node_id))
    waiting = iter([node_id for _, node_id in sorted(displaced)] + newcomers)
    return [place if place is not None else next(waiting) for place in places]


def assign_ranks(
    nodes: Sequence[NodeRecord],
    order: Sequence[str],
    *,
    round_number: int,
    restart_count: int,
    warnings: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
) -> dict[str, Assignment]:
    """Return each node's :class:`~quorate.records.Assignment` by node id.

    Arguments:
        nodes: the round's members, in any order.
        order: all their node ids, each once; the index is the group rank.
        round_number, restart_count, warnings, missing: the same in every node's assignment.

    Raises:
        UsageError: ``order`` is not a permutation of the members (a ``decide_ranks`` plugin answered wrongly).
    """
    by_id = {node.node_id: node for node in nodes}
    if len(order) != len(by_id) or set(order) != set(by_id):
        raise UsageError(
            f"the rank order names {len(order)} node(s), {len(set(order) & set(by_id))} of them members, but the "
            f"round has {len(by_id)}; a decide_ranks plugin must answer every member once"
        )
    members = [by_id[node_id] for node_id in order]
    world_size = sum(node.local_world_size for node in members)
    role_sizes: dict[str, int] = {}
    for node in members:
        role_sizes[node.role] = role_sizes.get(node.role, 0) + node.local_world_size
    first = members[0]
    spans_hosts = len({node.host for node in members}) > 1
    master_addr = first.outside_address if spans_hosts and first.outside_address else first.address
    result: dict[str, Assignment] = {}
    next_rank = 0
    next_role_rank: dict[str, int] = {}
    for group_rank, node in enumerate(members):
        role_rank = next_role_rank.get(node.role, 0)
        result[node.node_id] = Assignment(
            round_number=round_number,
            node_id=node.node_id,
            role=node.role,
            local_world_size=node.local_world_size,
            group_rank=group_rank,
            group_world_size=len(members),
            first_rank=next_rank,
            world_size=world_size,
            first_role_rank=role_rank,
            role_world_size=role_sizes[node.role],
            master_addr=master_addr,
            master_port=first.port,
            shares_store=first.shares_store,
            restart_count=restart_count,
            warnings=warnings,
            missing=missing,
        )
        next_rank += node.local_world_size
        next_role_rank[node.role] = role_rank + node.local_world_size
    return result


def select_nodes(
    nodes: Sequence[NodeRecord], previous_round: int | None, max_nodes: int
) -> tuple[list[NodeRecord], list[NodeRecord]]:
    """Split ``nodes`` (in the order in which they came) into the next round's members and the standbys.

    Survivors of the previous round come first, so that a newcomer never displaces a node with state.
    """
    survived = [node for node in nodes if previous_round is not None and node.previous_round == previous_round]
    rest = [node for node in nodes if previous_round is None or node.previous_round != previous_round]
    ranked = survived + rest
    chosen = {node.node_id for node in ranked[:max_nodes]}
    return [n for n in nodes if n.node_id in chosen], [n for n in nodes if n.node_id not in chosen]


def previous_order(nodes: Sequence[NodeRecord], previous_round: int | None) -> list[str]:
    """Return the previous round's node ids by group rank; an empty string for a member that is not among ``nodes``."""
    known: Mapping[int, str] = {
        node.previous_rank: node.node_id
        for node in nodes
        if previous_round is not None and node.previous_round == previous_round and node.previous_rank is not None
    }
    return [known.get(rank, "") for rank in range(max(known, default=-1) + 1)]


def _name(node: NodeRecord) -> str:
    return f"{node.name} ({node.address})"
