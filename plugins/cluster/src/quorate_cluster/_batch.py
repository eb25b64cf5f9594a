"""Schedulers that list a job's hosts in a file or a variable: PBS, LSF, and Flux, which is asked for them.

What does not live here: Slurm (``_slurm``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quorate.clusters import ClusterJob, Machine

from ._hosts import expand_hosts, is_same_host, name_part, number, port_for, unique

_PBS_KILL_SECONDS = 10.0
_LSF_KILL_SECONDS = 10.0
_FLUX_KILL_SECONDS = 5.0
_BLAUNCH = 'blaunch -z "$(sort -u $LSB_DJOB_HOSTFILE)" quorate run …'


def _position(hosts: Sequence[str], name: str) -> int | None:
    return next((at for at, host in enumerate(hosts) if is_same_host(host, name)), None)


# --- PBS (OpenPBS, PBS Pro, Torque) ---------------------------------------------------------------------------------


def pbs(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what PBS says: the hosts of ``PBS_NODEFILE``, of which ``pbsdsh`` runs one agent each."""
    slots = [line.strip() for line in machine.read(environment["PBS_NODEFILE"]).splitlines() if line.strip()]
    hosts = unique(slots)
    rank = _position(hosts, machine.host)
    if rank is None:
        rank = number(environment, "PBS_NODENUM")
    job_id = environment["PBS_JOBID"]
    job_name = environment.get("PBS_JOBNAME", "")
    problem = ""
    if not hosts:
        problem = (
            f"PBS_NODEFILE={environment['PBS_NODEFILE']} cannot be read on {machine.host}; "
            "add --nnodes=N and --rdzv-endpoint=HOST:29400, with the host of rank 0"
        )
    elif len(hosts) > 1 and rank == 0 and environment.get("PBS_TASKNUM", "1") == "1":
        problem = (
            f"this is the script of a job with {len(hosts)} hosts, so quorate would run on one of them. Write: "
            "pbsdsh -- quorate run … (Torque: pbsdsh -u quorate run …; give --nnodes=1 to use this host alone)"
        )
        rank = None  # it is not a node
    elif _shares_its_host(slots, number(environment, "PBS_VNODENUM")):
        problem = (
            "pbsdsh has started an agent on every slot of this host; one agent starts all workers of its host. "
            "Write: pbsdsh -u quorate run --nproc-per-node=N …"
        )
    return ClusterJob(
        scheduler="PBS",
        job_id=job_id,
        job_name=job_name,
        run_id=f"{name_part(job_name) or 'pbs'}-{name_part(job_id)}",
        min_nodes=len(hosts) or None,
        max_nodes=len(hosts) or None,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host=hosts[0] if hosts else "",
        endpoint_port=port_for(job_id),
        warnings=("SIGTERM",),
        warns_whole_job=True,
        kill_seconds=_PBS_KILL_SECONDS,
        requeue=("qrerun", job_id),
        problem=problem,
    )


def _shares_its_host(slots: Sequence[str], slot: int | None) -> bool:
    return slot is not None and 0 < slot < len(slots) and slots[slot - 1] == slots[slot]


# --- LSF ------------------------------------------------------------------------------------------------------------


def lsf(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what LSF says: the hosts of the job, of which ``blaunch`` or ``jsrun`` runs one agent each."""
    hosts = _lsf_hosts(environment, machine)
    job_id, index = environment["LSB_JOBID"], number(environment, "LSB_JOBINDEX") or 0
    shown_id = f"{job_id}[{index}]" if index else job_id
    job_name = environment.get("LSB_JOBNAME", "")
    nodes: int | None = len(hosts) or None
    rank = _position(hosts, machine.host)
    problem = ""
    size = number(environment, "JSM_NAMESPACE_SIZE")
    if size:  # jsrun: its launch host is the first of the list, and runs no task
        nodes, rank = size, number(environment, "JSM_NAMESPACE_RANK")
        hosts = hosts[1:] if len(hosts) == size + 1 else hosts
        here = number(environment, "JSM_NAMESPACE_LOCAL_SIZE") or 1
        if here > 1:
            problem = (
                f"jsrun has started {here} agents on this host; one agent starts all workers of its host. "
                f"Write: jsrun --rs_per_host=1 --tasks_per_rs=1 quorate run --nproc-per-node={here} …"
            )
    elif nodes and rank is None:
        problem = (
            f"{machine.host} is not one of the job's hosts ({', '.join(hosts[:8])}); start an agent on each: {_BLAUNCH}"
        )
    elif len(hosts) > 1 and "LSF_PM_TASKID" not in environment:  # which LSF sets for all that blaunch has started
        problem = (
            f"this is the script of a job with {len(hosts)} hosts, so quorate would run on one of them. "
            f"Write: {_BLAUNCH} (or give --nnodes=1 to use this host alone)"
        )
        rank = None
    return ClusterJob(
        scheduler="LSF",
        job_id=shown_id,
        job_name=job_name,
        run_id=f"{name_part(job_name) or 'lsf'}-{name_part(shown_id)}",
        min_nodes=nodes,
        max_nodes=nodes,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host=hosts[0] if hosts else "",
        endpoint_port=port_for(job_id, index),
        warnings=("SIGUSR2", "SIGTERM"),
        warns_whole_job=True,
        kill_seconds=_LSF_KILL_SECONDS,
        requeue=("brequeue", shown_id),
        problem=problem,
    )


def _lsf_hosts(environment: Mapping[str, str], machine: Machine) -> list[str]:
    path = environment.get("LSB_DJOB_HOSTFILE", "")
    listed = machine.read(path).split() if path else []
    # Pairs of a host and its slots; LSB_HOSTS, a host per slot, is left out by LSF where it would be too long.
    pairs = environment.get("LSB_MCPU_HOSTS", "").split()
    return unique(listed or pairs[::2] or environment.get("LSB_HOSTS", "").split())


# --- Flux -----------------------------------------------------------------------------------------------------------


def flux(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what Flux says; only ``flux`` itself tells the hosts of a job."""
    rank, size = number(environment, "FLUX_TASK_RANK"), number(environment, "FLUX_JOB_SIZE")
    if rank is None or not size:
        return None
    job_id = environment["FLUX_JOB_ID"]
    nodes = number(environment, "FLUX_JOB_NNODES") or size
    hosts = expand_hosts(machine.output("flux", "jobs", "-no", "{nodelist}", job_id).strip()) if nodes > 1 else []
    problem = ""
    if size > nodes:
        problem = (
            f"the job has {size} tasks on {nodes} node(s); one agent starts all workers of its node. "
            f"Write: flux run --nodes={nodes} --tasks-per-node=1 quorate run … "
            "(or give --nnodes if several agents on a node are meant)"
        )
    return ClusterJob(
        scheduler="Flux",
        job_id=job_id,
        job_name=environment.get("FLUX_JOB_NAME", ""),
        run_id=f"{name_part(environment.get('FLUX_JOB_NAME', '')) or 'flux'}-{name_part(job_id)}",
        min_nodes=size,
        max_nodes=size,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host=hosts[0] if hosts else "",
        endpoint_port=port_for(job_id),
        warnings=("SIGUSR1", "SIGTERM"),
        warns_whole_job=True,
        kill_seconds=_FLUX_KILL_SECONDS,
        problem=problem,
    )
