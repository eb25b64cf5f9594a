"""The agent with torch's arguments: ``WorkerSpec``, ``LocalElasticAgent`` and what they are made of.

What does not live here: the agent itself (:mod:`quorate.agent`).
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import quorate
from quorate import RunResult, Std, WorkerGroup
from quorate.lazy_exports import lazy_function
from quorate.logs_specs import adopt_logs_specs

from ._config import with_numa
from ._environment import without_hook
from ._errors import raised_as_torch_has_it

#: With torch, which programs with such a handler have.
_adopt = lazy_function(f"{__package__}._adopted", "AdoptedHandler")
#: The role of workers that have none.
DEFAULT_ROLE = "default"


@final
@dataclass
class WorkerSpec:
    """What one role's workers on one node are; fields, order and defaults are torch's.

    Arguments:
        rdzv_handler: quorate's, or one of torch's interface.
        fn: the former name of ``entrypoint``.
        numa_options: what is read of torch's is ``affinity_mode``.
        redirects, tee: as in older releases of torch; used by an agent that has no logs specs.

    Raises:
        UsageError: a value out of its range, or no entrypoint; torch has an AssertionError there.
    """

    role: str
    local_world_size: int
    rdzv_handler: Any
    fn: Callable[..., Any] | None = None
    entrypoint: Callable[..., Any] | str | None = None
    args: tuple[Any, ...] = ()
    max_restarts: int = 3
    monitor_interval: float = 0.1
    master_port: int | None = None
    master_addr: str | None = None
    local_addr: str | None = None
    event_log_handler: str = "null"
    numa_options: Any = None
    duplicate_stdout_filters: list[str] | None = None
    duplicate_stderr_filters: list[str] | None = None
    virtual_local_rank: bool = False
    _: KW_ONLY
    redirects: Std | Mapping[int, Std] = Std.NONE
    tee: Std | Mapping[int, Std] = Std.NONE

    def __post_init__(self) -> None:
        if self.fn is not None:
            warnings.warn("WorkerSpec(fn=…) is the former name of entrypoint=…", DeprecationWarning, stacklevel=3)
            self.entrypoint = self.fn
        self.to_quorate()  # what it cannot be is said where it is made

    def to_quorate(self) -> quorate.WorkerSpec:
        """Return the frozen specification.  Raises UsageError."""
        if self.entrypoint is None:
            raise quorate.UsageError("WorkerSpec needs an entrypoint, a command or a function")
        handler = self.rdzv_handler
        if callable(getattr(handler, "next_rendezvous", None)) and not isinstance(handler, quorate.RendezvousHandler):
            handler = _adopt(handler)
        return quorate.WorkerSpec(
            self.role or DEFAULT_ROLE,
            self.local_world_size,
            handler,
            self.entrypoint,
            self.args,
            self.max_restarts,
            self.monitor_interval,
            self.master_addr,
            self.master_port,
            self.local_addr,
            event_log_handler=self.event_log_handler,
            virtual_local_rank=self.virtual_local_rank,
            environment=without_hook(os.environ),
            settings=with_numa({}, self.numa_options),
        )

    def get_entrypoint_name(self) -> str:
        """Return the last part of a command's path, or the qualified name of a function."""
        return self.to_quorate().get_entrypoint_name()


class ElasticAgent(ABC):
    """Runs the workers of one node.  quorate's own agent is one, too."""

    @abstractmethod
    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run until the job ends for this node, and say how."""

    @abstractmethod
    def get_worker_group(self, role: str = DEFAULT_ROLE) -> WorkerGroup:
        """Return the workers as of now."""


ElasticAgent.register(quorate.LocalElasticAgent)


@final
class LocalElasticAgent(ElasticAgent):
    """quorate's agent with torch's arguments; see :class:`quorate.LocalElasticAgent` for what they mean.

    Arguments:
        spec: torch's, this module's or quorate's.
        logs_specs: torch's or quorate's.

    Raises:
        UsageError: a value cannot be used.
    """

    def __init__(
        self,
        spec: Any,
        logs_specs: Any = None,
        start_method: str = "spawn",
        exit_barrier_timeout: float = 300,
        log_line_prefix_template: str | None = None,
        shutdown_timeout: float | None = 30,
        health_check_server: Any = None,
        uninterruptible_state_timeout: float | None = None,
    ) -> None:
        if not isinstance(spec, quorate.WorkerSpec):
            own = own_spec(spec)
            specs = quorate.DefaultLogsSpecs(None, own.redirects, own.tee) if logs_specs is None else logs_specs
            logs_specs = adopt_logs_specs(specs).with_duplicate_filters(
                tuple(own.duplicate_stdout_filters or ()), tuple(own.duplicate_stderr_filters or ())
            )
            spec = own.to_quorate()
        elif logs_specs is not None:
            logs_specs = adopt_logs_specs(logs_specs)
        self._agent = quorate.LocalElasticAgent(
            spec,
            logs_specs,
            start_method,
            exit_barrier_timeout,
            log_line_prefix_template,
            shutdown_timeout,
            health_check_server,
            uninterruptible_state_timeout,
        )

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run until the job ends for this node, and say how.

        Raises:
            as :meth:`quorate.LocalElasticAgent.run`; torch's own classes in a process that has loaded them.
        """
        with raised_as_torch_has_it():
            return self._agent.run(role)

    def get_worker_group(self, role: str = DEFAULT_ROLE) -> WorkerGroup:
        """Return the workers as of now; an agent has one role."""
        return self._agent.worker_group


def own_spec(spec: Any) -> WorkerSpec:
    """Return torch's specification as this module's."""
    if isinstance(spec, WorkerSpec):
        return spec
    names = [name for name in WorkerSpec.__dataclass_fields__ if name not in ("fn", "redirects", "tee")]
    return WorkerSpec(**{name: getattr(spec, name) for name in names if hasattr(spec, name)})
