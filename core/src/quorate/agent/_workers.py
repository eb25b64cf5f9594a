"""The workers of an agent's newest round, as services see them.

What does not live here: the processes themselves, which belong to the starter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

from attrs import evolve

from ..affinity import format_cpus
from ..clock import wall_time_ns
from ..records import WorkerExited, WorkerLaunch, WorkerStatus
from ..services import WorkerSnapshot


@final
class WorkerTable:
    """Written by the agent's thread; ``workers``, ended ones included, may be read from any thread."""

    def __init__(self) -> None:
        self.workers: tuple[WorkerSnapshot, ...] = ()
        self._launches: tuple[WorkerLaunch, ...] = ()

    def continued(self, launches: Sequence[WorkerLaunch], kept: Collection[int]) -> list[WorkerLaunch]:
        """Return ``launches`` with the files of those workers that live on: their streams cannot be changed."""
        before = {launch.local_rank: launch for launch in self._launches}
        return [
            _with_files_of(before[launch.local_rank], launch)
            if launch.local_rank in kept and launch.local_rank in before
            else launch
            for launch in launches
        ]

    def started(
        self, launches: Sequence[WorkerLaunch], pids: Mapping[int, int], kept: Collection[int] = frozenset()
    ) -> None:
        """Note that all workers of a round were started; ``pids`` is by local rank, ``kept`` have lived on."""
        now = wall_time_ns()
        before = {worker.local_rank: worker for worker in self.workers if worker.local_rank in kept}
        self._launches = tuple(launches)
        self.workers = tuple(
            WorkerSnapshot(
                launch.local_rank,
                launch.rank,
                pids.get(launch.local_rank, 0),
                started_ns=before[launch.local_rank].started_ns if launch.local_rank in before else now,
                stdout=launch.logs.stdout or "",
                stderr=launch.logs.stderr or "",
                error_file=launch.error_file,
                cpus=format_cpus(launch.cpus or ()),
                rounds=before[launch.local_rank].rounds + 1 if launch.local_rank in before else 1,
            )
            for launch in launches
        )

    def released(self, local_ranks: Collection[int]) -> None:
        """Note that these workers have left their world and wait for the next one."""
        self._set(local_ranks, WorkerStatus.RELEASED)

    def delivered(self, local_ranks: Sequence[int]) -> None:
        """Note that the functions of these workers have returned; their processes still run."""
        self._set(local_ranks, WorkerStatus.DELIVERED)

    def _set(self, local_ranks: Collection[int], status: WorkerStatus) -> None:
        if any(worker.is_working and worker.local_rank in local_ranks for worker in self.workers):
            self.workers = tuple(
                evolve(worker, state=status) if worker.is_working and worker.local_rank in local_ranks else worker
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


def _with_files_of(before: WorkerLaunch, launch: WorkerLaunch) -> WorkerLaunch:
    environment = dict(launch.environment)
    if before.error_file:
        environment["TORCHELASTIC_ERROR_FILE"] = before.error_file
    return evolve(launch, environment=environment, error_file=before.error_file, logs=before.logs)
