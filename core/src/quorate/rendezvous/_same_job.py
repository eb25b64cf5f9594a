"""Do two nodes belong to one job?  Compares their records.  Pure.

A difference that matters keeps a node out.  Any other difference is told once the round is sealed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from attrs import frozen

from ..records import NodeRecord


@final
@frozen
class Difference:
    """Two nodes differ in ``what``; if it ``matters``, they are not nodes of one job."""

    what: str
    here: str
    there: str
    matters: bool
    remedy: str = ""


def differences(node: NodeRecord, other: NodeRecord, is_named: bool) -> list[Difference]:
    """Return how ``node`` differs from ``other``, a node of the job that it wants to join.

    Arguments:
        is_named: the job's name was given.  A name says which nodes belong together, so that user and arguments may
            differ.  A name that comes from the endpoint does not.
    """
    found = []
    theirs, ours = _bounds(other), _bounds(node)
    if ours and theirs and ours != theirs:
        remedy = "give all nodes of the job the same --nnodes"
        found.append(Difference("--nnodes", ours, theirs, True, remedy))
    # Nodes with another role may well run another program.
    if node.role == other.role and node.command and other.command:
        if node.command != other.command:
            found.append(Difference("the command", node.command, other.command, True))
        elif node.arguments and other.arguments and node.arguments != other.arguments:
            ours, theirs = (f"{each.command} with the arguments {each.arguments}" for each in (node, other))
            found.append(Difference("the command line", ours, theirs, not is_named))
    if node.user and other.user and node.user != other.user:
        found.append(Difference("the user", node.user, other.user, not is_named))
    if None not in (node.max_restarts, other.max_restarts) and node.max_restarts != other.max_restarts:
        found.append(Difference("--max-restarts", str(node.max_restarts), str(other.max_restarts), False))
    if node.version and other.version and node.version != other.version:
        found.append(Difference("quorate's version", node.version, other.version, False))
    return found


def _bounds(node: NodeRecord) -> str:
    if node.min_nodes is None or node.max_nodes is None:
        return ""
    return f"{node.min_nodes}" if node.min_nodes == node.max_nodes else f"{node.min_nodes}:{node.max_nodes}"


def refusal(node: NodeRecord, other: NodeRecord, run_id: str, is_named: bool) -> str:
    """Return why ``node`` is not a node of the job that ``other`` began; ``""`` if it is one."""
    serious = [each for each in differences(node, other, is_named) if each.matters]
    if not serious:
        return ""
    parts = [f"{each.what} is {each.here} on {node.name} and {each.there} on {other.name}" for each in serious]
    remedies = [each.remedy for each in serious if each.remedy]
    two_jobs = "if these are two jobs, give each its own --rdzv-id" + ("" if is_named else " or --rdzv-endpoint")
    by = f", begun by {other.user} on {other.name}," if other.user else f", begun on {other.name},"
    return f"the job {run_id!r}{by} is another one: {'; '.join(parts)}; {'; '.join([*remedies, two_jobs])}"


def difference_warnings(nodes: Sequence[NodeRecord]) -> tuple[str, ...]:
    """Return one sentence for each kind of difference between nodes of a round that does not matter."""
    told: dict[str, str] = {}
    first = nodes[0]
    for node in nodes[1:]:
        for each in differences(first, node, is_named=True):
            told.setdefault(each.what, f"{each.what} is {each.here} on {first.name} and {each.there} on {node.name}")
    return tuple(f"nodes of this job differ: {sentence}" for sentence in told.values())
