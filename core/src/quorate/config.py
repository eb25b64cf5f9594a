"""``LaunchConfig``: everything a launch needs to know, and the single place that validates it.

What does not live here: where the values come from (:mod:`quorate.cli`) and what is done with them
(:mod:`quorate.launcher`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, final

from attrs import asdict, field, frozen

from .catalogue import PluginKind
from .errors import UsageError
from .logs_specs import DefaultLogsSpecs, LogsSpecs
from .plugins import get_host
from .rendezvous import RendezvousBackend, RendezvousParameters
from .timeouts import Timeouts, _seconds

__all__ = ["LaunchConfig", "Timeouts"]

_DEFAULT_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
_UNCATCHABLE = ("SIGKILL", "SIGSTOP")


def _copied(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(settings)


def _shutdown_timeout(value: float | None) -> float:
    if value is not None:
        return _seconds("shutdown_timeout (--shutdown-timeout)", value)
    text = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
    return _seconds("the environment variable TORCH_ELASTIC_SHUTDOWN_TIMEOUT", text)


def _signal_names(value: str | Sequence[str]) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(part.strip().upper() for part in parts if part.strip()))


def _logs_specs(value: LogsSpecs | None) -> LogsSpecs:
    return DefaultLogsSpecs() if value is None else value


def _filters(value: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UsageError(f"a list of words is needed to filter lines by, not the string {value!r}")
    return tuple(value or ())


@final
@frozen
class LaunchConfig:
    """One node's part of a job: how many nodes and workers, where they meet, and how they are run.

    Arguments:
        min_nodes, max_nodes: how many nodes a round needs, and takes at most.
        nproc_per_node: how many workers this node runs.
        run_id: the job's name, the same on all nodes; empty: see :meth:`rendezvous_parameters`.
        role: what this node's workers are, for names and role ranks.
        rdzv_backend: name of an installed rendezvous backend; empty: ``standalone`` for one node without an
            endpoint, else ``tcp``.
        rdzv_endpoint: where the nodes meet, ``host:port`` unless the backend says otherwise.
        rdzv_configs: settings of the rendezvous, time-outs (:class:`Timeouts`) among them.
        rdzv_timeout: seconds, an old spelling of the setting ``join_timeout``; -1: not set.
        max_restarts: how often the job's workers are restarted after a failure, over all nodes.
        monitor_interval: seconds, the longest that the fall-back of an event-driven wait may take.
        start_method: how functions are started (``spawn``, ``fork``, ``forkserver``, or what plugins offer); commands
            too if it takes them (``warm``), else those are started by ``exec``.
        logs_specs: where output goes; ``None``: a new ``DefaultLogsSpecs()``.
        log_line_prefix_template: what stands before each line on the console.
        metrics_cfg: accepted for programs that pass it; nothing reads it.
        local_addr: the address at which other nodes reach this one.
        event_log_handler: name of an installed event sink; ``null`` for none.
        duplicate_stdout_filters, duplicate_stderr_filters: lines with one of these words go to a file of their own.
        signals_to_handle: names of the signals that stop the job, comma-separated or a sequence.
        shutdown_timeout: seconds that workers get to stop; ``None``: ``TORCH_ELASTIC_SHUTDOWN_TIMEOUT``, else 30.
        exit_barrier_timeout: seconds for which a node whose workers succeeded waits for the others.
        virtual_local_rank: each worker sees one device, as local rank 0.
        node_rank: the group rank that this node asks for.
        master_addr, master_port: what workers get as ``MASTER_ADDR``/``MASTER_PORT``, whatever rendezvous says.
        environment: more variables for the workers.
        settings: what plugins' own flags have left here.

    Raises:
        UsageError: a value is out of range or contradicts another; the message names it, its flag and the remedy.
    """

    min_nodes: int
    max_nodes: int
    nproc_per_node: int
    run_id: str = field(default="", kw_only=True)
    role: str = field(default="default_role", kw_only=True)
    rdzv_endpoint: str = field(default="", kw_only=True)
    rdzv_backend: str = field(default="", kw_only=True)
    rdzv_configs: Mapping[str, Any] = field(factory=dict, converter=_copied, kw_only=True)
    rdzv_timeout: float = field(default=-1, kw_only=True)
    max_restarts: int = field(default=3, kw_only=True)
    monitor_interval: float = field(default=0.1, kw_only=True)
    start_method: str = field(default="spawn", kw_only=True)
    logs_specs: LogsSpecs = field(default=None, converter=_logs_specs, kw_only=True)
    log_line_prefix_template: str | None = field(default=None, kw_only=True)
    metrics_cfg: Mapping[str, str] = field(factory=dict, kw_only=True)
    local_addr: str | None = field(default=None, kw_only=True)
    event_log_handler: str = field(default="null", kw_only=True)
    duplicate_stdout_filters: tuple[str, ...] = field(default=None, converter=_filters, kw_only=True)
    duplicate_stderr_filters: tuple[str, ...] = field(default=None, converter=_filters, kw_only=True)
    signals_to_handle: tuple[str, ...] = field(default=_DEFAULT_SIGNALS, converter=_signal_names, kw_only=True)
    shutdown_timeout: float = field(default=None, converter=_shutdown_timeout, kw_only=True)
    exit_barrier_timeout: float = field(default=300.0, kw_only=True)
    virtual_local_rank: bool = field(default=False, kw_only=True)
    health_interval: float = field(default=0.0, kw_only=True)
    node_rank: int | None = field(default=None, kw_only=True)
    master_addr: str | None = field(default=None, kw_only=True)
    master_port: int | None = field(default=None, kw_only=True)
    environment: Mapping[str, str] = field(factory=dict, kw_only=True)
    settings: Mapping[str, Any] = field(factory=dict, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self._check_nodes()
        self._check_times()
        _check_signals(self.signals_to_handle)
        for name, value in (("role", self.role), ("start_method", self.start_method)):
            if not value:
                raise UsageError(f"{name} is empty; set --{name.replace('_', '-')} to a name")

    def _check_nodes(self) -> None:
        _at_least("min_nodes", self.min_nodes, 1, "--nnodes")
        _at_least("max_nodes", self.max_nodes, 1, "--nnodes")
        if self.min_nodes > self.max_nodes:
            raise UsageError(
                f"the minimum number of nodes ({self.min_nodes}) is above the maximum ({self.max_nodes}); "
                "set --nnodes=MIN:MAX with MIN no larger than MAX"
            )
        _at_least("nproc_per_node", self.nproc_per_node, 1, "--nproc-per-node")
        _at_least("max_restarts", self.max_restarts, 0, "--max-restarts")
        if self.node_rank is not None:
            _at_least("node_rank", self.node_rank, 0, "--node-rank")
            if self.node_rank >= self.max_nodes:
                raise UsageError(
                    f"node_rank is {self.node_rank}, but the job has at most {self.max_nodes} node(s), whose ranks "
                    f"count from 0; set --nnodes to the number of nodes, or --node-rank below {self.max_nodes}"
                )
        if self.master_port is not None and not (_is_whole(self.master_port) and 1 <= self.master_port <= 65535):
            raise UsageError(f"master_port is {self.master_port!r}; it must be a port from 1 to 65535 (--master-port)")

    def _check_times(self) -> None:
        if _seconds("monitor_interval (--monitor-interval)", self.monitor_interval) <= 0:
            raise UsageError("monitor_interval is 0; set --monitor-interval to seconds above 0")
        _seconds("exit_barrier_timeout (--exit-barrier-timeout)", self.exit_barrier_timeout)
        _seconds("health_interval (--health-interval)", self.health_interval)
        if self.rdzv_timeout != -1:
            _seconds("rdzv_timeout", self.rdzv_timeout)
        self.timeouts()

    # --- what follows from it -------------------------------------------------------------------------------------

    def timeouts(self) -> Timeouts:
        """Return the time-outs of the rendezvous, in seconds."""
        settings = dict(self.rdzv_configs)
        if self.rdzv_timeout != -1:
            settings.setdefault("join_timeout", self.rdzv_timeout)
        return Timeouts.from_settings(settings)

    def backend(self) -> str:
        """Return the name of the rendezvous backend."""
        if self.rdzv_backend:
            return self.rdzv_backend
        return "standalone" if self.max_nodes == 1 and not self.rdzv_endpoint else "tcp"

    def rank_hint(self) -> int | None:
        """Return the group rank that this node asks for, ``None`` if it has no wish."""
        if self.node_rank is not None or "rank" not in self.rdzv_configs:
            return self.node_rank
        return self.rendezvous_parameters().get_as_int("rank")

    def rendezvous_parameters(self) -> RendezvousParameters:
        """Return how to reach the others.

        Without a run id: a single node's job gets a new one at each call; several nodes that meet in a store of
        their own (``static``, ``tcp``, ``c10d``) are told apart by its endpoint; in a store that other jobs may use
        too, a name is needed.

        Raises:
            UsageError: a run id is needed, or the backend is not named.
        """
        settings = {**self.rdzv_configs, **asdict(self.timeouts(), recurse=False)}
        if self.node_rank is not None:
            settings.setdefault("rank", self.node_rank)
        return RendezvousParameters(
            self.backend(),
            self.rdzv_endpoint,
            self.run_id or self._new_run_id(),
            self.min_nodes,
            self.max_nodes,
            self.local_addr,
            **settings,
        )

    def _new_run_id(self) -> str:
        if self.max_nodes == 1:
            return os.urandom(8).hex()
        backend: RendezvousBackend = get_host().choose(PluginKind.RENDEZVOUS, self.backend())
        if backend.hosted_by_job:
            # Only the port: nodes may well spell the host differently (localhost, a name, an address).
            return f"job-{self.rdzv_endpoint.rpartition(':')[2] or 'default'}"
        raise UsageError(
            f"several nodes meet through {backend.name!r}, whose store other jobs may use as well; "
            "set --rdzv-id (run_id) to a name that all nodes of this job share, and no other job"
        )

    def worker_logs_specs(self) -> LogsSpecs:
        """Return ``logs_specs`` with the duplicate filters given here, if any."""
        if not self.duplicate_stdout_filters and not self.duplicate_stderr_filters:
            return self.logs_specs
        from copy import copy

        specs = copy(self.logs_specs)
        specs._duplicate_stdout_filters = self.duplicate_stdout_filters or specs.duplicate_stdout_filters
        specs._duplicate_stderr_filters = self.duplicate_stderr_filters or specs.duplicate_stderr_filters
        return specs


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _at_least(name: str, value: object, minimum: int, flag: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {minimum} ({flag})")


def _check_signals(names: Sequence[str]) -> None:
    import signal

    if not names:
        raise UsageError("signals_to_handle is empty; name at least one signal (--signals-to-handle=SIGTERM)")
    for name in names:
        if name in _UNCATCHABLE:
            raise UsageError(f"{name} cannot be handled by any process; remove it from --signals-to-handle")
        if name not in signal.Signals.__members__:
            raise UsageError(f"{name!r} is no signal of this system; --signals-to-handle takes names such as SIGTERM")
