"""Slurm: job steps (``srun``), heterogeneous jobs, arrays, batch scripts and allocations.

The variables are those of srun(1), sbatch(1) and salloc(1); those of a step are set by the step that started this
process.  What does not live here: Open MPI's own start inside a job (``_mpi``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from attrs import evolve

from quorate.clock import monotonic, wall_seconds
from quorate.clusters import ClusterJob, Machine
from quorate.text import whole_number

from ._hosts import counts_of, expand_hosts, is_same_host, name_part, number, port_for

_KILL_WAIT_SECONDS = 30.0
#: Not a step that srun has started with a command: the shell of ``salloc`` (interactive), and the batch script.
_SHELL_STEPS = frozenset({"4294967290", "4294967291"})
_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf")
_MOST_PARTS = 1024  # of a heterogeneous job
#: The reason of a job that Slurm ends because its time is over.
_AT_ITS_LIMIT = "TimeLimit"
_TIME_LEFT = re.compile(r"(?:(?P<days>[0-9]{1,4})-)?(?P<clock>[0-9]{1,6}(?::[0-9]{1,6}){0,2})")
_KILL_WAIT = re.compile(r"^\s*KillWait\s*=\s*(\d{1,6})\b", re.IGNORECASE | re.MULTILINE)


def slurm(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what Slurm says of this process's job and step."""
    job_id = environment["SLURM_JOB_ID"]
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), number(environment, "SLURM_ARRAY_TASK_ID")
    shown_id = f"{array}_{task}" if array and task is not None else job_id
    job_name = environment.get("SLURM_JOB_NAME", "")
    step = environment.get("SLURM_STEP_ID", "")
    is_step = bool(step) and step not in _SHELL_STEPS and number(environment, "SLURM_PROCID") is not None
    restarts = number(environment, "SLURM_RESTART_COUNT") or 0
    run_id = f"{name_part(job_name) or 'slurm'}-{name_part(shown_id)}"
    if is_step and step != "0":
        run_id += f".{name_part(step)}"
    if restarts:
        run_id += f"-r{restarts}"
    job = ClusterJob(
        scheduler="Slurm",
        job_id=shown_id,
        job_name=job_name,
        run_id=run_id,
        node_name=environment.get("SLURMD_NODENAME", "") or machine.host,
        workers=number(environment, "SLURM_GPUS_ON_NODE") or None,
        warnings=("SIGUSR1", "SIGUSR2", "SIGTERM"),
        warns_whole_job=True,
        kill_seconds=_kill_wait(environment, machine),
        seconds_left=_time_left(environment, machine),
        requeue=("scontrol", "requeue", job_id),
    )
    if not is_step:
        return _outside_of_a_step(environment, machine, job)
    tasks = number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") or 1
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", ""))
    per_node = counts_of(environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", ""))
    return evolve(
        job,
        min_nodes=tasks,
        max_nodes=tasks,
        node_rank=number(environment, "SLURM_PROCID"),
        endpoint_host=hosts[0] if hosts else environment.get("SLURM_LAUNCH_NODE_IPADDR", ""),
        endpoint_port=_port(environment, number(environment, "SLURM_STEP_ID") or 0),
        problem=_several_agents(per_node, len(hosts)),
    )


def _several_agents(per_node: list[int], hosts: int) -> str:
    most = max(per_node, default=1)
    if most <= 1:
        return ""
    return (
        f"the step has {most} tasks on a node, each of them an agent; one agent starts all workers of its node. "
        f"Write: srun --nodes={hosts} --ntasks={hosts} --ntasks-per-node=1 quorate run --nproc-per-node={most} … "
        "(or give --nnodes if several agents on a node are meant, or --standalone to use this node alone)"
    )


def _outside_of_a_step(environment: Mapping[str, str], machine: Machine, job: ClusterJob) -> ClusterJob:
    parts = number(environment, "SLURM_HET_SIZE") or 1
    each = [number(environment, f"SLURM_JOB_NUM_NODES_HET_GROUP_{part}") for part in range(min(parts, _MOST_PARTS))]
    nodes = sum(count or 0 for count in each) or number(environment, "SLURM_JOB_NUM_NODES", "SLURM_NNODES") or 1
    listed = environment.get("SLURM_JOB_NODELIST_HET_GROUP_0") or environment.get("SLURM_JOB_NODELIST", "")
    hosts = expand_hosts(listed)
    problem = remark = ""
    if nodes > 1:
        size = f"--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1" if parts == 1 else f"--het-group=0-{parts - 1}"
        problem = (
            f"this is the batch script or the shell of a job with {nodes} nodes, so quorate would run on one of them. "
            f"Write: srun {size} quorate run … (or give --nnodes=1 to use this node alone)"
        )
    elif hosts and not environment.get("SLURMD_NODENAME") and not is_same_host(machine.host, hosts[0]):
        # Whatever Slurm starts on a node has that variable, so this is the shell of salloc where salloc was called.
        remark = (
            f"the workers run here, on {machine.host}, and not on the job's node {hosts[0]}; "
            "to use that, write: srun quorate run …"
        )
    # A launcher such as mpirun, which this script has started, may not say where its rank 0 is.
    return evolve(
        job,
        min_nodes=1,
        max_nodes=1,
        endpoint_host=hosts[0] if hosts and nodes > 1 else "",
        endpoint_port=_port(environment, 0),
        problem=problem,
        remark=remark,
    )


def _port(environment: Mapping[str, str], step: int) -> int:
    """Return the port of this step: jobs, and steps of one job, may share a machine."""
    reserved = environment.get("SLURM_STEP_RESV_PORTS", "").partition("-")[0].partition(",")[0]
    port = whole_number(reserved)
    if port is not None and 0 < port <= 65535:
        return port
    return port_for(environment["SLURM_JOB_ID"], step)


def _kill_wait(environment: Mapping[str, str], machine: Machine) -> float:
    for path in (environment.get("SLURM_CONF", ""), *_CONFIGURATIONS):
        found = _KILL_WAIT.search(machine.read(path)) if path else None
        if found is not None:
            return float(found[1])
    return _KILL_WAIT_SECONDS


def _time_left(environment: Mapping[str, str], machine: Machine) -> Callable[[], float | None]:
    """Return what asks squeue, which knows of changes; where it cannot be run the variable counts."""
    job_id, end = environment["SLURM_JOB_ID"], whole_number(environment.get("SLURM_JOB_END_TIME", ""))

    ends_at: float | None = None

    def ask() -> float | None:
        nonlocal ends_at
        time, _, reason = machine.output("squeue", "--noheader", f"--jobs={job_id}", "--format=%L %r").partition(" ")
        if reason.strip() == _AT_ITS_LIMIT:
            return 0.0
        left = parse_time_left(time)
        if left is None and ends_at is None and end:
            left = float(end - wall_seconds())
        if left is not None:
            ends_at = monotonic() + left
        # squeue says no time of a job that is being ended for another reason; what it said before still holds.
        return None if ends_at is None else max(0.0, ends_at - monotonic())

    return ask


def parse_time_left(text: str) -> float | None:
    """Return the seconds of Slurm's ``[days-][[hours:]minutes:]seconds``, ``None`` for a text such as UNLIMITED."""
    found = _TIME_LEFT.fullmatch(text.strip())
    if found is None:
        return None
    seconds = 0
    for part in found["clock"].split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds + 86_400 * int(found["days"] or 0))
