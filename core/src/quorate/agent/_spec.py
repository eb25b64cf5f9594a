"""What a worker group is: its specification, its state and its result.  Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, final

from ..errors import UsageError
from ..failures import ProcessFailure
from ..rendezvous import RendezvousHandler

if TYPE_CHECKING:
    from ..verdict import JobVerdict

__all__ = ["RunResult", "Worker", "WorkerGroup", "WorkerSpec", "WorkerState"]


@final
class WorkerState(str, Enum):
    """The state of a worker group."""

    UNKNOWN = "UNKNOWN"  # the agent lost track of it
    INIT = "INIT"  # not started yet
    HEALTHY = "HEALTHY"  # running
    UNHEALTHY = "UNHEALTHY"  # running, but something is wrong; it is being stopped
    STOPPED = "STOPPED"  # stopped on purpose; the agent may start it again
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @staticmethod
    def is_running(state: WorkerState) -> bool:
        """Return whether workers of a group in ``state`` are running."""
        return state in (WorkerState.HEALTHY, WorkerState.UNHEALTHY)


@final
class WorkerSpec:
    """What one role's workers on one node are, and how they are run.

    Arguments:
        role: the role's name.
        local_world_size: workers on this node, at least 1.
        rdzv_handler: where the nodes of the job meet.
        entrypoint: a command or a callable; with ``args``.
        max_restarts: how often the **job** may be restarted after failures.
        monitor_interval: upper bound in seconds for fall-back polling, where something cannot be waited for.
        master_addr, master_port: given to the workers whatever the rendezvous says.
        local_addr: this node's address, as others reach it.
        node_rank: the group rank that this node claims.
        shutdown_timeout: seconds that workers get to stop, whatever the cause; ``grace`` overrides it by cause
            (keys ``restart``, ``rescale``, ``preemption``, ``exit``).
        signals_to_handle: names of signals upon which the agent stops its workers and leaves.
        virtual_local_rank: show each worker ``LOCAL_RANK=0`` and its own device only.
        environment: more variables for the workers.
        event_log_handler: name of the event sink.
        health_interval: seconds between checks of the node while workers run; 0 to check before each join only.
        settings: free settings, for plugins.

    Raises:
        UsageError: a value out of its range.
    """

    def __init__(
        self,
        role: str,
        local_world_size: int,
        rdzv_handler: RendezvousHandler,
        entrypoint: str | Callable[..., Any],
        args: Sequence[Any] = (),
        max_restarts: int = 3,
        monitor_interval: float = 0.1,
        master_addr: str | None = None,
        master_port: int | None = None,
        local_addr: str | None = None,
        *,
        node_rank: int | None = None,
        shutdown_timeout: float = 30.0,
        grace: Mapping[str, float] | None = None,
        signals_to_handle: Sequence[str] = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"),
        virtual_local_rank: bool = False,
        environment: Mapping[str, str] | None = None,
        event_log_handler: str = "null",
        health_interval: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if local_world_size < 1:
            raise UsageError(f"local_world_size is {local_world_size}, it must be at least 1; set --nproc-per-node")
        if max_restarts < 0:
            raise UsageError(f"max_restarts is {max_restarts}, it must be at least 0; set --max-restarts")
        if monitor_interval <= 0:
            raise UsageError(f"monitor_interval is {monitor_interval}, it must be above 0 s; set --monitor-interval")
        if shutdown_timeout < 0:
            raise UsageError(f"shutdown_timeout is {shutdown_timeout}, it must be at least 0 s")
        if health_interval < 0:
            raise UsageError(f"health_interval is {health_interval}, it must be at least 0 s; set --health-interval")
        unknown = set(grace or ()) - {"restart", "rescale", "preemption", "exit"}
        if unknown:
            raise UsageError(f"unknown causes of a stop: {', '.join(sorted(unknown))}")
        self.role = role
        self.local_world_size = local_world_size
        self.rdzv_handler = rdzv_handler
        self.entrypoint = entrypoint
        self.args = tuple(args)
        self.max_restarts = max_restarts
        self.monitor_interval = monitor_interval
        self.master_addr = master_addr
        self.master_port = master_port
        self.local_addr = local_addr
        self.node_rank = node_rank
        self.shutdown_timeout = shutdown_timeout
        self.grace = dict(grace or {})
        self.signals_to_handle = tuple(signals_to_handle)
        self.virtual_local_rank = virtual_local_rank
        self.environment = dict(environment or {})
        self.event_log_handler = event_log_handler
        self.health_interval = health_interval
        self.settings = dict(settings or {})

    def get_entrypoint_name(self) -> str:
        """Return the last part of a command's path, or the qualified name of a callable."""
        if isinstance(self.entrypoint, str):
            return self.entrypoint.rpartition("/")[2]
        return getattr(self.entrypoint, "__qualname__", repr(self.entrypoint))


@final
class Worker:
    """One worker of a group: its ranks, the sizes of its world, and its process id (``id``)."""

    __slots__ = ("global_rank", "id", "local_rank", "role_rank", "role_world_size", "world_size")

    def __init__(
        self,
        local_rank: int,
        global_rank: int = -1,
        role_rank: int = -1,
        world_size: int = -1,
        role_world_size: int = -1,
    ) -> None:
        self.id: int | None = None
        self.local_rank, self.global_rank, self.role_rank = local_rank, global_rank, role_rank
        self.world_size, self.role_world_size = world_size, role_world_size

    def __repr__(self) -> str:
        return (
            f"Worker(local_rank={self.local_rank}, global_rank={self.global_rank}, role_rank={self.role_rank}, "
            f"world_size={self.world_size}, role_world_size={self.role_world_size}, id={self.id})"
        )


@final
class WorkerGroup:
    """The workers of one agent in the current round; the agent keeps it up to date."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.workers = [Worker(local_rank) for local_rank in range(spec.local_world_size)]
        self.group_rank: int | None = None
        self.group_world_size: int | None = None
        self.master_addr: str | None = None
        self.master_port: int | None = None
        self.restart_count = 0
        self.round_number: int | None = None
        self.state = WorkerState.INIT


@final
class RunResult:
    """How an agent's run ended.  Can be pickled.

    Attributes:
        state: ``SUCCEEDED`` or ``FAILED``.
        return_values: global rank -> what the worker's function returned, for this node's workers.
        failures: global rank -> failure; holds the job's root cause even where it was on another node.
        reason: the sentence that was recorded as the job's end, the same on every node.
        verdict: all that is known of the job's end.
    """

    def __init__(
        self,
        state: WorkerState,
        return_values: Mapping[int, Any] | None = None,
        failures: Mapping[int, ProcessFailure] | None = None,
        reason: str = "",
        verdict: JobVerdict | None = None,
    ) -> None:
        self.state = state
        self.return_values = dict(sorted((return_values or {}).items()))
        self.failures = dict(failures or {})
        self.reason = reason
        self.verdict = verdict

    def is_failed(self) -> bool:
        """Return whether the job failed."""
        return self.state is WorkerState.FAILED

    def __repr__(self) -> str:
        return (
            f"RunResult(state={self.state.value}, return_values={self.return_values!r}, "
            f"failures={self.failures!r}, reason={self.reason!r})"
        )
