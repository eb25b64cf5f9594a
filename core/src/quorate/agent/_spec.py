"""A worker group: its specification, its state and its result.  Data only.

What does not live here: the workers' processes, and the defaults and bounds of the settings, which are those of
:class:`quorate.config.LaunchConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, final

from attrs import field, fields, frozen

from ..config import LaunchConfig
from ..errors import UsageError
from ..failures import ProcessFailure
from ..logs_specs import LogsSpecs
from ..rendezvous import RendezvousHandler
from ..verdict import JobVerdict
from . import _protocol as protocol

__all__ = ["RunResult", "RunSettings", "Worker", "WorkerGroup", "WorkerSpec", "WorkerState"]

_CONFIG: Any = fields(LaunchConfig)


@final
class WorkerState(str, Enum):
    """The state of a worker group, as TorchElastic names it."""

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


def _shutdown_timeout(value: float | None) -> float:
    seconds: float = _CONFIG.shutdown_timeout.converter(value)
    return seconds


def _signal_names(value: str | Sequence[str]) -> tuple[str, ...]:
    names: tuple[str, ...] = _CONFIG.signals_to_handle.converter(value)
    return names


def _copied(values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return dict(values or {})


@final
@frozen
class WorkerSpec:
    """One role's workers on one node, and how they are run.

    Arguments:
        role: the role's name.
        local_world_size: workers on this node, at least 1.
        rdzv_handler: the rendezvous of the job.
        entrypoint: a command or a callable; with ``args``.
        grace: seconds that workers get to stop, by cause (``restart``, ``rescale``, ``preemption``, ``exit``); a cause
            that is not named gets ``shutdown_timeout``.
        health_interval: seconds between checks of the node while workers run; 0 to check before each join only.

    The other arguments are those of :class:`quorate.config.LaunchConfig`, with its defaults and bounds.

    Raises:
        UsageError: a value out of its range.
    """

    role: str
    local_world_size: int
    rdzv_handler: RendezvousHandler
    entrypoint: str | Callable[..., Any]
    args: tuple[Any, ...] = field(default=(), converter=tuple)
    max_restarts: int = _CONFIG.max_restarts.default
    monitor_interval: float = _CONFIG.monitor_interval.default
    master_addr: str | None = None
    master_port: int | None = None
    local_addr: str | None = None
    node_rank: int | None = field(default=None, kw_only=True)
    shutdown_timeout: float = field(default=None, converter=_shutdown_timeout, kw_only=True)
    grace: Mapping[str, float] = field(default=None, converter=_copied, kw_only=True)
    signals_to_handle: tuple[str, ...] = field(
        default=_CONFIG.signals_to_handle.default, converter=_signal_names, kw_only=True
    )
    virtual_local_rank: bool = field(default=_CONFIG.virtual_local_rank.default, kw_only=True)
    environment: Mapping[str, str] = field(default=None, converter=_copied, kw_only=True)
    event_log_handler: str = field(default=_CONFIG.event_log_handler.default, kw_only=True)
    health_interval: float = field(default=_CONFIG.health_interval.default, kw_only=True)
    settings: Mapping[str, Any] = field(default=None, converter=_copied, kw_only=True)

    def __attrs_post_init__(self) -> None:
        # The bounds are those of a launch on as many nodes as it takes for this node's rank.
        nodes = 1 + (self.node_rank or 0)
        LaunchConfig(1, nodes, self.local_world_size, **_shared(self))
        unknown = set(self.grace) - {cause.name for cause in fields(protocol.Grace)}
        if unknown:
            raise UsageError(f"unknown causes of a stop in grace: {', '.join(sorted(unknown))}")

    @classmethod
    def from_config(
        cls,
        config: LaunchConfig,
        rdzv_handler: RendezvousHandler,
        entrypoint: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
    ) -> WorkerSpec:
        """Return the workers of ``config``."""
        shared = {**_shared(config), "node_rank": config.rank_hint()}
        return cls(
            local_world_size=config.nproc_per_node,
            rdzv_handler=rdzv_handler,
            entrypoint=entrypoint,
            args=args,
            **shared,
        )

    def grace_periods(self) -> protocol.Grace:
        """Return the seconds that workers get to stop, for every cause."""
        return protocol.Grace(
            **{cause.name: self.grace.get(cause.name, self.shutdown_timeout) for cause in fields(protocol.Grace)}
        )

    def get_entrypoint_name(self) -> str:
        """Return the last part of a command's path, or the qualified name of a callable."""
        if isinstance(self.entrypoint, str):
            return self.entrypoint.rpartition("/")[2]
        return getattr(self.entrypoint, "__qualname__", repr(self.entrypoint))


def _shared(settings: WorkerSpec | LaunchConfig) -> dict[str, Any]:
    """Return the settings that a worker specification and a launch have in common."""
    names = {own.name for own in fields(WorkerSpec)} & {own.name for own in fields(LaunchConfig)}
    return {name: getattr(settings, name) for name in sorted(names)}


@final
@frozen
class RunSettings:
    """The settings of one run of an agent; the fields are the arguments of ``LocalElasticAgent``."""

    spec: WorkerSpec
    logs_specs: LogsSpecs
    start_method: str
    exit_barrier_timeout: float = field(converter=float)
    prefix_template: str | None = None


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
