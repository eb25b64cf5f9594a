"""The workers of an agent's newest round, as services see them.

What does not live here: the processes themselves, which belong to the starter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from attrs import evolve

from ..affinity import format_cpus
from ..clock import wall_time_ns
from ..records import WorkerExited, WorkerLaunch, WorkerStatus
from ..services import WorkerSnapshot

__all__ = ["WorkerTable"]


@final
class WorkerTable:
    """Written by the agent's thread; ``workers``, ended ones included, may be read from any thread."""

    def __init__(self) -> None:
        self.workers: tuple[WorkerSnapshot, ...] = ()

    def started(self, launches: Sequence[WorkerLaunch], pids: Mapping[int, int]) -> None:
        """Note that all workers of a round were started; ``pids`` is by local rank."""
        now = wall_time_ns()
        self.workers = tuple(
            WorkerSnapshot(
                launch.local_rank,
                launch.rank,
                pids.get(launch.local_rank, 0),
                started_ns=now,
                stdout=launch.logs.stdout or "",
                stderr=launch.logs.stderr or "",
                error_file=launch.error_file,
                cpus=format_cpus(launch.cpus or ()),
            )
            for launch in launches
        )

    def delivered(self, local_ranks: Sequence[int]) -> None:
        """Note that the functions of these workers have returned; their processes still run."""
        if any(worker.is_working and worker.local_rank in local_ranks for worker in self.workers):
            self.workers = tuple(
                evolve(worker, state=WorkerStatus.DELIVERED)
                if worker.is_working and worker.local_rank in local_ranks
                else worker
                for worker in self.workers
            )

    def ended(self, exits: Sequence[WorkerExited]) -> None:
        """Note that workers have ended."""
        by_rank = {exit.local_rank: exit for exit in exits}
        self.workers = tuple(
            evolve(worker, state=_status_of(by_rank[worker.local_rank]), exit_code=by_rank[worker.local_rank].exit_code)
            if worker.local_rank in by_rank
            else worker
            for worker in self.workers
        )

    def is_running(self, local_rank: int, pid: int) -> bool:
        """Return whether this very process is one of the workers and runs."""
        return any(
            worker.local_rank == local_rank and worker.pid == pid and worker.is_working for worker in self.workers
        )


def _status_of(exit: WorkerExited) -> WorkerStatus:
    if exit.stopped:
        return WorkerStatus.STOPPED
    return WorkerStatus.SUCCEEDED if exit.exit_code == 0 else WorkerStatus.FAILED
