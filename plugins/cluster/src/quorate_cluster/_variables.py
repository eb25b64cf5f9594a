"""The bare contract of ``MASTER_ADDR``, ``MASTER_PORT``, ``RANK`` and ``WORLD_SIZE``, set once per node.

Many platforms set these for a launcher.  The variables of a *worker* look alike; ``LOCAL_RANK`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quorate.clusters import ClusterJob, Machine
from quorate.net import host_alone

from ._hosts import number


def contract(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the fields of a :class:`~quorate.clusters.ClusterJob` that the variables give; ``None`` if they do not.

    ``NNODES`` and ``NODE_RANK`` count nodes; where they are not set ``WORLD_SIZE`` and ``RANK`` do.
    """
    if environment.get("LOCAL_RANK"):
        return None
    nodes, rank = number(environment, "NNODES"), number(environment, "NODE_RANK")
    if nodes is None or rank is None:
        nodes, rank = number(environment, "WORLD_SIZE"), number(environment, "RANK")
    # Without a rank the rest may be left from elsewhere; with a wrong one each node would be a job of its own.
    written = environment.get("RANK", "").strip()
    if not nodes or (rank is None and (nodes == 1 or not written)):
        return None
    address = environment.get("MASTER_ADDR", "").strip()
    host = host_alone(address)
    problem = ""
    if rank is None:
        problem = f"RANK={written} is not the rank of one of {nodes} nodes, which count from 0"
    elif rank >= nodes:
        problem = (
            f"this is node {rank} of {nodes}, whose ranks count from 0; set RANK below WORLD_SIZE "
            "(or NODE_RANK below NNODES)"
        )
    elif nodes > 1 and address and not host:
        problem = f"MASTER_ADDR={address} is not a host; write its name or address alone, and the port into MASTER_PORT"
    port = number(environment, "MASTER_PORT")
    return {
        "min_nodes": nodes,
        "max_nodes": nodes,
        "node_rank": rank,
        "endpoint_host": host,
        "master_port": port if port and port < 65535 else None,
        "problem": problem,
    }


def variables(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what the variables say."""
    known = contract(environment)
    if known is None:
        return None
    return ClusterJob(scheduler="MASTER_ADDR", node_name=machine.host, **known)
