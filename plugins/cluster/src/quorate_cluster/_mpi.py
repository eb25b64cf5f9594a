"""Launchers of MPI programs: Open MPI's ``mpirun`` (4 and 5), PMIx alone, and PMI (MPICH, Intel MPI, Cray's PALS).

What does not live here: the scheduler in whose job they run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quorate.clusters import ClusterJob, Machine
from quorate.errors import UsageError
from quorate.net import Endpoint, is_local_name, parse_endpoint
from quorate.text import whole_number

from ._hosts import name_part, number

_DEFAULT_PORT = 29400
_PORTS = 1000
#: mpirun kills its processes about two seconds after its own SIGTERM.
_KILL_SECONDS = 2.0
#: PRRTE, from Open MPI 5 on, names a job after the machine that mpirun runs on, and its process id.
_NAMESPACE = re.compile(r"prterun-(?P<host>.+)-(?P<pid>[0-9]{1,9})@[0-9]+")


def open_mpi(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what mpirun says: each process that it starts is meant to be one node's agent."""
    size, rank = number(environment, "OMPI_COMM_WORLD_SIZE"), number(environment, "OMPI_COMM_WORLD_RANK")
    if not size or rank is None:
        return None
    here = number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    machines = number(environment, "OMPI_MCA_orte_num_nodes")
    is_one_machine = here == size and (machines or 1) == 1
    return ClusterJob(
        scheduler="Open MPI",
        run_id=f"mpi-{_job_name(environment)}",
        min_nodes=size,
        max_nodes=size,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host="127.0.0.1" if is_one_machine else _mpirun_host(environment),
        endpoint_port=_port(environment),
        kill_seconds=_KILL_SECONDS,
        problem="" if here == 1 or is_one_machine else _several_agents(here),
    )


def _several_agents(here: int) -> str:
    return (
        f"mpirun has started {here} agents on this machine; one agent starts all workers of its machine. "
        f"Write: mpirun --map-by ppr:1:node quorate run --nproc-per-node={here} … "
        "(or give --nnodes if several agents on a machine are meant)"
    )


def _job_name(environment: Mapping[str, str]) -> str:
    return name_part(environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid") or "job")


def _port(environment: Mapping[str, str]) -> int:
    """Return a port for this job; several jobs of mpirun may share a machine."""
    namespace = environment.get("PMIX_NAMESPACE", "")
    found = _NAMESPACE.fullmatch(namespace)
    if found is not None:
        return _DEFAULT_PORT + int(found["pid"]) % _PORTS
    # In Open MPI 4 the upper half tells the mpirun, the lower half its jobs.
    return _DEFAULT_PORT + ((whole_number(namespace) or 0) >> 16) % _PORTS


def _mpirun_host(environment: Mapping[str, str]) -> str:
    """Return an address of the machine that mpirun runs on, which is mostly that of rank 0."""
    for entry in environment.get("OMPI_MCA_orte_hnp_uri", "").split(";")[1:]:
        addresses, _, _ = entry.rpartition("://")[2].rpartition(":")
        for address in addresses.strip("[]").split(","):
            if address and not is_local_name(address):
                return address
    found = _NAMESPACE.fullmatch(environment.get("PMIX_NAMESPACE", ""))
    return "" if found is None else found["host"]


def pmix(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what PMIx says by variables: the rank and the job.  The number of processes is not among them."""
    found = _NAMESPACE.fullmatch(environment.get("PMIX_NAMESPACE", ""))
    rank = number(environment, "PMIX_RANK")
    if rank is None:
        return None
    return ClusterJob(
        scheduler="PMIx",
        run_id=f"pmix-{_job_name(environment)}",
        node_rank=rank,
        node_name=machine.host,
        endpoint_host="" if found is None else found["host"],
        endpoint_port=_port(environment),
        problem="PMIx tells a process its rank, but not how many there are; add --nnodes=N, the number of agents",
    )


def pmi(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what PMI says: the rank, the number of processes, and (Hydra) how many are on this machine."""
    size, rank = number(environment, "PMI_SIZE"), number(environment, "PMI_RANK")
    if not size or rank is None:
        return None
    here = number(environment, "MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE") or 1
    problem = ""
    if here > 1 and here < size:
        problem = (
            f"the launcher has started {here} agents on this machine; one agent starts all workers of its machine. "
            f"Write: mpiexec -ppn 1 quorate run --nproc-per-node={here} … "
            "(or give --nnodes if several agents on a machine are meant)"
        )
    return ClusterJob(
        scheduler="MPI",
        min_nodes=size,
        max_nodes=size,
        node_rank=rank,
        node_name=machine.host,
        endpoint_host="127.0.0.1" if here == size else _control_host(environment),
        problem=problem,
    )


def _control_host(environment: Mapping[str, str]) -> str:
    """Return the host of PMI's own server, where it listens on a port: mpiexec's machine."""
    try:
        server: Endpoint = parse_endpoint(environment.get("PMI_PORT", ""))
    except UsageError:
        return ""
    return "" if is_local_name(server.host) else server.host
