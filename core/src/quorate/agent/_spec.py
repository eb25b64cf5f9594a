"""What a worker group is: its specification, its state and its result.  Data only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, final

from attrs import define, field, fields, frozen

from .._bounded import MOST_NODES
from ..clusters import grace_before
from ..config import LaunchConfig
from ..errors import UsageError
from ..failures import ProcessFailure
from ..logs_specs import LogsSpecs
from ..rendezvous import RendezvousHandler
from ..text import is_word_of_command
from ..timeouts import parse_seconds
from ..verdict import JobVerdict
from ..worker_settings import WorkerSettings, at_least, by_position, copied, text, words_of
from . import _protocol as protocol


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


def _grace(value: Mapping[str, float] | None) -> Mapping[str, float]:
    return {cause: parse_seconds(f"grace[{cause!r:.80}]", each) for cause, each in copied("grace", value).items()}


def _known_causes(spec: Any, attribute: Any, grace: Mapping[str, float]) -> None:
    unknown = set(grace) - {cause.name for cause in fields(protocol.Grace)}
    if unknown:
        raise UsageError(f"unknown causes of a stop in grace: {', '.join(sorted(unknown))}")


def _entrypoint(spec: Any, attribute: Any, entrypoint: Any) -> None:
    if not callable(entrypoint) and not (entrypoint and is_word_of_command(entrypoint)):
        raise UsageError(f"the entrypoint must be a callable or a command, not {entrypoint!r:.80}")


def _role(spec: Any, attribute: Any, role: Any) -> None:
    if role is None:
        raise UsageError("role is None; it must be a text, which may be empty (--role)")
    text(spec, attribute, role)


def _arguments(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise UsageError(f"args is {value!r:.80}; it must be a sequence of the entrypoint's arguments")
    return tuple(value)


@final
@frozen(eq=False)
class WorkerSpec(WorkerSettings):
    """What one role's workers on one node are, and how they are run.

    Arguments:
        role: the role's name.
        local_world_size: workers on this node, at least 1.
        rdzv_handler: where the nodes of the job meet.
        entrypoint: a command or a callable.
        args: its arguments; those of a command are passed as text.
        grace: seconds that workers get to stop, by cause (``restart``, ``rescale``, ``preemption``, ``exit``);
            ``shutdown_timeout`` for the causes that are not named.

    The other arguments are those of :class:`quorate.worker_settings.WorkerSettings`.

    Raises:
        UsageError: a value out of its range.
    """

    role: str = field(validator=_role)
    local_world_size: int = field(validator=at_least(1, "--nproc-per-node", most=MOST_NODES))
    rdzv_handler: RendezvousHandler
    entrypoint: str | Callable[..., Any] = field(validator=_entrypoint)
    args: tuple[Any, ...] = field(default=(), converter=_arguments)
    max_restarts: int = by_position("max_restarts")
    monitor_interval: float = by_position("monitor_interval")
    master_addr: str | None = by_position("master_addr")
    master_port: int | None = by_position("master_port")
    local_addr: str | None = by_position("local_addr")
    grace: Mapping[str, float] = field(factory=dict, converter=_grace, validator=_known_causes, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.entrypoint, str):
            object.__setattr__(self, "args", words_of(self.args))  # frozen for everybody else

    @classmethod
    def from_config(
        cls,
        config: LaunchConfig,
        rdzv_handler: RendezvousHandler,
        entrypoint: str | Callable[..., Any],
        args: Sequence[Any] = (),
    ) -> WorkerSpec:
        """Return the workers of ``config`` on this node."""
        shared = {**config.worker_settings(), "node_rank": config.rank_hint()}
        return cls(config.role, config.nproc_per_node, rdzv_handler, entrypoint, args, **shared)

    def grace_periods(self) -> protocol.Grace:
        """Return the seconds that workers get to stop, for every cause, within what the scheduler leaves."""
        seconds = {cause.name: self.grace.get(cause.name, self.shutdown_timeout) for cause in fields(protocol.Grace)}
        job = self.cluster
        if job is not None and job.kill_seconds is not None:  # the scheduler kills soon after its SIGTERM
            seconds["preemption"] = min(seconds["preemption"], grace_before(job.kill_seconds))
        return protocol.Grace(**seconds)

    def get_entrypoint_name(self) -> str:
        """Return the last part of a command's path, or the qualified name of a callable."""
        if isinstance(self.entrypoint, str):
            return self.entrypoint.rpartition("/")[2]
        return getattr(self.entrypoint, "__qualname__", repr(self.entrypoint))


def _exit_barrier_timeout(value: Any) -> float:
    return parse_seconds("exit_barrier_timeout (--exit-barrier-timeout)", value)


@final
@frozen
class RunSettings:
    """The settings of one run of an agent; the fields are the arguments of ``LocalElasticAgent``."""

    spec: WorkerSpec
    logs_specs: LogsSpecs
    start_method: str
    exit_barrier_timeout: float = field(converter=_exit_barrier_timeout)
    prefix_template: str | None = None


@final
@define(eq=False)
class Worker:
    """One worker of a group: its ranks, the sizes of its world, and its process id (``id``)."""

    local_rank: int
    global_rank: int = -1
    role_rank: int = -1
    world_size: int = -1
    role_world_size: int = -1
    id: int | None = field(default=None, init=False)


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


def _by_rank(values: Mapping[int, Any] | None) -> dict[int, Any]:
    return dict(sorted((values or {}).items()))


def _copied(failures: Mapping[int, ProcessFailure] | None) -> dict[int, ProcessFailure]:
    return dict(failures or {})


@final
@define(eq=False, slots=False)
class RunResult:
    """How an agent's run ended.  Can be pickled.

    Attributes:
        state: ``SUCCEEDED`` or ``FAILED``.
        return_values: global rank -> what the worker's function returned, for this node's workers.
        failures: global rank -> failure; holds the job's root cause even where it was on another node.
        reason: the sentence that was recorded as the job's end, the same on every node.
        verdict: all that is known of the job's end.
        others_unknown: this node's workers have succeeded, and the store was lost before the others' fate was known.
    """

    state: WorkerState = field(repr=attrgetter("value"))
    return_values: dict[int, Any] = field(default=None, converter=_by_rank)
    failures: dict[int, ProcessFailure] = field(default=None, converter=_copied)
    reason: str = ""
    verdict: JobVerdict | None = field(default=None, repr=False)
    others_unknown: bool = field(default=False, init=False, repr=False)

    def is_failed(self) -> bool:
        """Return whether the job failed."""
        return self.state is WorkerState.FAILED
