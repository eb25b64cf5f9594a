"""``SimpleElasticAgent``: quorate's agent whose workers are started, watched and stopped by a program's own methods.

The methods become a starter.  They are called on the agent's thread, so that what they wait for delays the agent.
What does not live here: the rendezvous, restarts and the exit barrier, which are quorate's.
"""

from __future__ import annotations

import os
import signal
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import quorate
from quorate import PluginHost, RunResult, Worker, WorkerGroup, WorkerState, hookimpl
from quorate.catalogue import EntrypointKind, StarterBackend
from quorate.clock import monotonic, wall_time_ns
from quorate.records import WorkerExited, WorkerLaunch
from quorate.starter import Starter, StarterRequest

from ._agent import DEFAULT_ROLE, ElasticAgent, own_spec
from ._errors import raised_as_torch_has_it

_START_METHOD = "own-methods"


class SimpleElasticAgent(ElasticAgent):
    """An agent to subclass: four methods say how workers are run.

    Attributes:
        launches: what is known of each worker of the present round, its whole environment for one.
    """

    launches: Sequence[WorkerLaunch] = ()

    def __init__(self, spec: Any, exit_barrier_timeout: float = 300, shutdown_timeout: float | None = 30) -> None:
        frozen = spec if isinstance(spec, quorate.WorkerSpec) else own_spec(spec).to_quorate()
        self._group = WorkerGroup(frozen)
        self._agent = quorate.LocalElasticAgent(
            frozen,
            None,
            _START_METHOD,
            exit_barrier_timeout,
            shutdown_timeout=shutdown_timeout,
            host=PluginHost(extra=[("own-methods-of-an-agent", _Plugin(self))]),
        )

    @abstractmethod
    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start the workers, and return an identifier of each, by local rank."""

    @abstractmethod
    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """Stop all workers that run; they are gone when this returns."""

    @abstractmethod
    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Say how the workers are, at once: by state, and by global rank the values or failures of those that ended."""

    @abstractmethod
    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        """Release everything; called once, when the run is over."""

    def get_worker_group(self, role: str = DEFAULT_ROLE) -> WorkerGroup:
        """Return the workers as of now; an agent has one role."""
        return self._group

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run until the job ends for this node, and say how.

        Raises:
            as :meth:`quorate.LocalElasticAgent.run`; torch's own classes in a process that has loaded them.
        """
        try:
            with raised_as_torch_has_it():
                result = self._agent.run(role)
                self._group.state = result.state
                return result
        finally:
            self._shutdown()


@final
class _Plugin:
    """Offers the methods of one agent as a start method."""

    def __init__(self, agent: SimpleElasticAgent) -> None:
        self._agent = agent

    @hookimpl
    def quorate_register_starter(self) -> list[StarterBackend]:
        summary = "calls an agent's own methods"
        return [StarterBackend(_START_METHOD, summary, EntrypointKind.ANY, self._create)]

    def _create(self, request: StarterRequest) -> Starter:
        return _Starter(self._agent)


@final
class _Starter:
    def __init__(self, agent: SimpleElasticAgent) -> None:
        self._agent = agent

    def start(self, launches: Sequence[WorkerLaunch]) -> _Context:
        """See :class:`quorate.starter.Starter`."""
        group = self._agent.get_worker_group()
        first = launches[0].environment
        group.group_rank, group.group_world_size = int(first["GROUP_RANK"]), int(first["GROUP_WORLD_SIZE"])
        group.master_addr, group.master_port = first["MASTER_ADDR"], int(first["MASTER_PORT"])
        group.restart_count = int(first["TORCHELASTIC_RESTART_COUNT"])
        group.workers = [_worker_of(launch) for launch in launches]
        group.state = WorkerState.HEALTHY
        self._agent.launches = tuple(launches)
        try:
            ids = self._agent._start_workers(group)
        except Exception as error:
            raise quorate.StartError(f"the agent's _start_workers raised {type(error).__name__}: {error}") from error
        for worker in group.workers:
            if not isinstance(ids, Mapping) or worker.local_rank not in ids:
                self._agent._stop_workers(group)
                raise quorate.StartError(
                    f"the agent's _start_workers returned no identifier of local rank {worker.local_rank}",
                    local_rank=worker.local_rank,
                )
            worker.id = ids[worker.local_rank]
        return _Context(self._agent, group)


def _worker_of(launch: WorkerLaunch) -> Worker:
    sizes = [int(launch.environment[name]) for name in ("ROLE_RANK", "WORLD_SIZE", "ROLE_WORLD_SIZE")]
    return Worker(launch.local_rank, launch.rank, *sizes)


@final
class _Context:
    """Asks the agent's ``_monitor_workers`` once in each monitor interval."""

    def __init__(self, agent: SimpleElasticAgent, group: WorkerGroup) -> None:
        self._agent, self._group = agent, group
        self._interval = group.spec.monitor_interval
        self._running = {worker.local_rank: worker for worker in group.workers}
        self._ended: list[WorkerExited] = []
        self._next_look = 0.0
        # Never readable: only the agent's methods know of the workers.
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._reader

    def wake_at(self) -> float | None:
        return self._next_look if self._running or self._ended else None

    def advance(self, now: float) -> Sequence[WorkerExited]:
        if self._running and now >= self._next_look:
            self._next_look = now + self._interval
            self._look()
        ended, self._ended = self._ended, []
        return ended

    def _look(self) -> None:
        result = self._agent._monitor_workers(self._group)
        self._group.state = WorkerState(result.state.value)
        if self._group.state is WorkerState.SUCCEEDED:
            for worker in list(self._running.values()):
                self._end(worker, 0, value=result.return_values.get(worker.global_rank))
        elif self._group.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            failures: Mapping[int, Any] = result.failures
            failed = [worker for worker in self._running.values() if worker.global_rank in failures]
            for worker in failed or list(self._running.values()):
                failure = failures.get(worker.global_rank)
                self._end(worker, 1 if failure is None else failure.exitcode or 1)

    def _end(self, worker: Worker, exit_code: int, value: Any = None, stopped: bool = False) -> None:
        del self._running[worker.local_rank]
        pid = worker.id if isinstance(worker.id, int) else 0
        self._ended.append(WorkerExited(worker.local_rank, pid, exit_code, wall_time_ns(), value, stopped))

    def is_gone(self) -> bool:
        return not self._running and not self._ended

    def pids(self) -> Mapping[int, int]:
        return {rank: worker.id for rank, worker in self._running.items() if isinstance(worker.id, int)}

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        if self._running:
            self._agent._stop_workers(self._group)
        for worker in list(self._running.values()):
            self._end(worker, -signal_number, stopped=True)
        self._next_look = monotonic()

    def close(self) -> None:
        try:
            if self._running:
                self._agent._stop_workers(self._group)
        finally:
            os.close(self._reader)
            os.close(self._writer)
