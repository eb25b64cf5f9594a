"""Schedulers and launchers of clusters, as records that say which node of which job this process is.

A scheduler is imported once one of its variables is set: every launch imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quorate.clusters import ClusterEnvironment, ClusterJob, Machine
from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_exports, lazy_function

__all__ = ["expand_hosts", "plugin"]

__getattr__ = lazy_exports(globals(), {"expand_hosts": "_hosts"})

_Find = Callable[[Mapping[str, str], Machine], ClusterJob | None]


def _gated(module: str, function: str, *markers: str) -> _Find:
    """Return a finder that is imported where all of ``markers`` are set."""
    find: _Find = lazy_function(f"{__name__}.{module}", function)

    def gate(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
        return find(environment, machine) if all(environment.get(name) for name in markers) else None

    return gate


class plugin:  # noqa: N801 - the name of the entry point
    """The hook that this distribution implements."""

    @staticmethod
    @hookimpl
    def quorate_register_environment() -> list[ClusterEnvironment]:
        """Offer every scheduler that is known here; a launcher that runs inside another's job has the higher number."""
        return [
            ClusterEnvironment("openmpi", "mpirun of Open MPI", _gated("_mpi", "open_mpi", "OMPI_COMM_WORLD_SIZE"), 20),
            # Their processes have the variables of the script that called mpiexec, too.
            ClusterEnvironment(
                "hydra",
                "mpiexec of MPICH or Intel MPI",
                _gated("_mpi", "pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
                20,
            ),
            ClusterEnvironment("pals", "mpiexec of PALS", _gated("_mpi", "pmi", "PMI_RANK", "PALS_RANKID"), 20),
            ClusterEnvironment(
                "ray", "a worker of Ray Train", _gated("_clouds", "ray", "RAY_JOB_ID", "WORLD_SIZE"), 18
            ),
            ClusterEnvironment("flux", "flux run", _gated("_batch", "flux", "FLUX_JOB_ID", "FLUX_TASK_RANK"), 16),
            ClusterEnvironment("skypilot", "SkyPilot", _gated("_clouds", "skypilot", "SKYPILOT_NODE_RANK"), 14),
            ClusterEnvironment("slurm", "Slurm", _gated("_slurm", "slurm", "SLURM_JOB_ID"), 10),
            ClusterEnvironment("pbs", "PBS", _gated("_batch", "pbs", "PBS_JOBID", "PBS_NODEFILE"), 10),
            ClusterEnvironment("lsf", "LSF", _gated("_batch", "lsf", "LSB_JOBID"), 10),
            ClusterEnvironment("pmix", "a launcher with PMIx", _gated("_mpi", "pmix", "PMIX_RANK"), 6),
            ClusterEnvironment("pmi", "a launcher with PMI", _gated("_mpi", "pmi", "PMI_RANK", "PMI_SIZE"), 6),
            ClusterEnvironment("sagemaker", "SageMaker", _gated("_clouds", "sagemaker", "TRAINING_JOB_NAME"), 2),
            ClusterEnvironment(
                "kubernetes", "Kubernetes", _gated("_kubernetes", "kubernetes", "KUBERNETES_SERVICE_HOST"), 0
            ),
            ClusterEnvironment(
                "variables",
                "a program that sets MASTER_ADDR, RANK and WORLD_SIZE",
                _gated("_variables", "variables", "MASTER_ADDR", "WORLD_SIZE"),
                -10,
            ),
        ]
