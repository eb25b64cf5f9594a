"""Platforms that start one process per machine: SkyPilot, SageMaker, and Ray Train with one worker per node.

What does not live here: Kubernetes (``_kubernetes``).
"""

from __future__ import annotations

from collections.abc import Mapping

from quorate.clusters import ClusterJob, Machine
from quorate.text import parse_json

from ._hosts import name_part, number, port_for, unique

_RESOURCES = "/opt/ml/input/config/resourceconfig.json"
_SAGEMAKER_KILL_SECONDS = 120.0


def skypilot(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what SkyPilot says; the first of the addresses is that of rank 0."""
    addresses = unique(environment.get("SKYPILOT_NODE_IPS", "").splitlines())
    nodes = number(environment, "SKYPILOT_NUM_NODES") or len(addresses) or None
    rank = number(environment, "SKYPILOT_NODE_RANK")
    if rank is None or nodes is None:
        return None
    task = environment.get("SKYPILOT_TASK_ID", "")
    return ClusterJob(
        scheduler="SkyPilot",
        job_id=task,
        job_name=environment.get("SKYPILOT_CLUSTER_NAME", ""),
        run_id=name_part(task) or "skypilot",
        min_nodes=nodes,
        max_nodes=nodes,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host=addresses[0] if addresses else "",
        workers=number(environment, "SKYPILOT_NUM_GPUS_PER_NODE") or None,
        local_addr=addresses[rank] if len(addresses) == nodes and rank < nodes else "",
    )


def sagemaker(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what SageMaker says, by its variables or, for a container without its toolkit, by its file."""
    hosts, name = _parsed(environment.get("SM_HOSTS", "")), environment.get("SM_CURRENT_HOST", "")
    if not isinstance(hosts, list):
        resources = _parsed(machine.read(_RESOURCES))
        if not isinstance(resources, dict):
            return None
        hosts, name = resources.get("hosts"), str(resources.get("current_host", ""))
    if not isinstance(hosts, list) or name not in hosts:
        return None
    # algo-10 stands after algo-9.
    hosts = sorted(map(str, hosts), key=lambda host: (len(host), host))
    job = environment.get("TRAINING_JOB_NAME", "")
    return ClusterJob(
        scheduler="SageMaker",
        job_id=job,
        job_name=job,
        run_id=name_part(job),
        min_nodes=len(hosts),
        max_nodes=len(hosts),
        node_rank=hosts.index(name),
        node_name=name,
        endpoint_host=hosts[0],
        workers=number(environment, "SM_NUM_GPUS") or None,
        warnings=("SIGTERM",),
        warns_whole_job=True,
        kill_seconds=_SAGEMAKER_KILL_SECONDS,
    )


def _parsed(text: str) -> object:
    try:
        return parse_json(text) if text else None
    except ValueError:
        return None


def ray(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what Ray Train says to its workers, of which one per node is meant to be the node's agent."""
    size, rank = number(environment, "WORLD_SIZE"), number(environment, "RANK")
    if not size or rank is None or not environment.get("MASTER_ADDR"):
        return None
    here = number(environment, "LOCAL_WORLD_SIZE") or 1
    problem = ""
    if here > 1:
        problem = (
            f"Ray Train has {here} workers on this node; one agent starts all workers of its node. Give each node one "
            f"worker with all its resources (ScalingConfig), and quorate --nproc-per-node={here}"
        )
    job_id = environment.get("RAY_JOB_ID", "")
    return ClusterJob(
        scheduler="Ray",
        job_id=job_id,
        run_id=f"ray-{name_part(job_id)}",
        min_nodes=size,
        max_nodes=size,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host=environment["MASTER_ADDR"],
        # Runs of one Ray job may share a machine; each has a MASTER_PORT of its own, which its workers use.
        endpoint_port=port_for(f"{job_id}:{environment.get('MASTER_PORT', '')}"),
        problem=problem,
    )
