"""``LaunchConfig``: everything a launch needs to know, checked before anything starts.

What does not live here: the settings that an agent has as well (:mod:`quorate.worker_settings`), the timeouts of the
rendezvous (:mod:`quorate.timeouts`), where values come from (:mod:`quorate.cli`) and what is done with them
(:mod:`quorate.launcher`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from attrs import Attribute, asdict, field, frozen

from ._bounded import MOST_NODES
from ._default_backends import ONE_NODE, SEVERAL_NODES
from .catalogue import PluginKind
from .errors import UsageError
from .job_token import AUTH_SETTING, Auth, parse_auth
from .logs_specs import DefaultLogsSpecs, LogsSpecs
from .notices import warn
from .plugins import get_host
from .rendezvous import RendezvousBackend, RendezvousParameters
from .rendezvous._api import DERIVED_SETTING
from .rendezvous._port import PORT_RANGE_SETTING, port_range
from .text import is_passable
from .timeouts import Timeouts, parse_seconds
from .worker_settings import WorkerSettings, at_least, copied, not_empty, seconds_or_variable, text

__all__ = ["LaunchConfig", "Timeouts"]

#: How long ``--local-addr`` is looked up, where it is a name.
_NAME_SECONDS = 5.0


def _settings(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return copied("rdzv_configs", value)


def _logs_specs(value: LogsSpecs | None) -> LogsSpecs:
    return DefaultLogsSpecs() if value is None else value


def _exit_barrier_timeout(value: float | None) -> float:
    return seconds_or_variable("exit_barrier_timeout", value, "TORCH_ELASTIC_EXIT_BARRIER_TIMEOUT", 300.0)


def _filters(value: Sequence[str] | None) -> tuple[str, ...]:
    words = tuple(value) if isinstance(value, Iterable) else () if value is None else (value,)
    if isinstance(value, str) or not all(map(is_passable, words)):
        raise UsageError(f"a list of words is needed to filter lines by, not the {type(value).__name__} {value!r:.80}")
    return words


def _ports(record: Any, attribute: Attribute[Any], value: str | None) -> None:
    if value is not None:
        port_range(value)
        if record.master_port is not None:
            raise UsageError(
                f"master_port ({record.master_port}) and master_port_range ({value}) contradict each other; "
                "remove one of the two (--master-port, --master-port-range)"
            )


def _or_empty(value: Any) -> Any:
    """Return "" for ``None``, which programs pass where they leave out a name."""
    return "" if value is None else value


@final
@frozen(kw_only=True)
class LaunchConfig(WorkerSettings):
    """One node's part of a job: how many nodes and workers, where they meet, and how they are run.

    Arguments:
        min_nodes, max_nodes: how many nodes a round needs, and takes at most.
        nproc_per_node: how many workers this node runs.
        run_id: the job's name, the same on all nodes; empty: see :meth:`rendezvous_parameters`.
        role: role name of this node's workers; may be empty.
        rdzv_backend: name of an installed rendezvous backend; empty: ``standalone`` for one node without an
            endpoint, else ``tcp``.  One node without an endpoint also gets ``standalone`` for a backend whose store
            the job's own nodes serve (``c10d``, ``tcp``).
        rdzv_endpoint: where the nodes meet, ``host:port`` unless the backend says otherwise.
        rdzv_configs: settings of the rendezvous, timeouts (:class:`quorate.timeouts.Timeouts`) among them.
        rdzv_timeout: seconds, an old spelling of the setting ``join_timeout``; -1: not set.
        rdzv_auth: whether the job token is used: ``auto``, ``required`` or ``off``; ``None``: what the setting ``auth``
            says, else ``auto``.
        master_port_range: ``LOW:HIGH``, the ports from which ``MASTER_PORT`` is taken; ``None``: what the setting of
            that name says, else any free port.
        start_method: how functions are started (``spawn``, ``fork``, ``forkserver``, or what plugins offer); commands
            too if it takes them (``warm``), else those are started by ``exec``.
        logs_specs: where output goes; ``None``: a new ``DefaultLogsSpecs()``.
        log_line_prefix_template: what stands before each line on the console.
        metrics_cfg: accepted for programs that pass it; nothing reads it.
        duplicate_stdout_filters, duplicate_stderr_filters: lines with one of these words go to a file of their own.
        exit_barrier_timeout: seconds for which a node whose workers succeeded waits for the others; ``None``:
            ``TORCH_ELASTIC_EXIT_BARRIER_TIMEOUT``, else 300.

    The other arguments are those of :class:`quorate.worker_settings.WorkerSettings`.

    Raises:
        UsageError: a value is out of range or contradicts another; the message names it, its flag and the remedy.
    """

    min_nodes: int = field(kw_only=False, validator=at_least(1, "--nnodes", most=MOST_NODES))
    max_nodes: int = field(kw_only=False, validator=at_least(1, "--nnodes", most=MOST_NODES))
    nproc_per_node: int = field(kw_only=False, validator=at_least(1, most=MOST_NODES))
    logs_specs: LogsSpecs = field(default=None, converter=_logs_specs, kw_only=False)
    run_id: str = field(default="", converter=_or_empty, validator=text)
    role: str = field(default="default_role", validator=text)
    rdzv_endpoint: str = field(default="", converter=_or_empty, validator=text)
    rdzv_backend: str = field(default="", converter=_or_empty, validator=text)
    rdzv_configs: Mapping[str, Any] = field(factory=dict, converter=_settings)
    rdzv_timeout: float = -1
    rdzv_auth: str | None = None
    master_port_range: str | None = field(default=None, validator=_ports)
    start_method: str = field(default="spawn", validator=not_empty)
    log_line_prefix_template: str | None = field(default=None, validator=text)
    metrics_cfg: Mapping[str, str] = field(factory=dict)
    duplicate_stdout_filters: tuple[str, ...] = field(default=None, converter=_filters)
    duplicate_stderr_filters: tuple[str, ...] = field(default=None, converter=_filters)
    exit_barrier_timeout: float = field(default=None, converter=_exit_barrier_timeout)

    def __attrs_post_init__(self) -> None:
        if self.min_nodes > self.max_nodes:
            raise UsageError(
                f"the minimum number of nodes ({self.min_nodes}) is above the maximum ({self.max_nodes}); "
                "set --nnodes=MIN:MAX with MIN no larger than MAX"
            )
        self._check_rank(self.node_rank)
        self.timeouts()
        self.auth()

    # --- what follows from it -------------------------------------------------------------------------------------

    def timeouts(self) -> Timeouts:
        """Return the timeouts of the rendezvous, in seconds."""
        settings = dict(self.rdzv_configs)
        if self.rdzv_timeout != -1:
            settings.setdefault("join_timeout", parse_seconds("rdzv_timeout", self.rdzv_timeout))
        return Timeouts.from_settings(settings)

    def backend(self) -> str:
        """Return the name of the rendezvous backend."""
        is_alone = self.max_nodes == 1 and not self.rdzv_endpoint
        if not self.rdzv_backend:
            return ONE_NODE if is_alone else SEVERAL_NODES
        if is_alone:
            backend = get_host().catalogue(PluginKind.RENDEZVOUS).get(self.rdzv_backend)
            if backend is not None and backend.hosted_by_job:
                return ONE_NODE
        return self.rdzv_backend

    def auth(self) -> Auth:
        """Return whether the job token is used."""
        word = self.rdzv_configs.get(AUTH_SETTING, Auth.AUTO) if self.rdzv_auth is None else self.rdzv_auth
        return parse_auth(word)

    def rank_hint(self) -> int | None:
        """Return the group rank that this node asks for, ``None`` if any will do."""
        if self.node_rank is not None or "rank" not in self.rdzv_configs:
            return self.node_rank
        rank = self.rendezvous_parameters().get_as_int("rank")
        self._check_rank(rank)
        return rank

    def _check_rank(self, rank: int | None) -> None:
        if rank is not None and rank >= self.max_nodes:
            raise UsageError(
                f"node_rank is {rank}, but the job has at most {self.max_nodes} node(s), whose ranks "
                f"count from 0; set --nnodes to the number of nodes, or --node-rank below {self.max_nodes}"
            )

    def rendezvous_parameters(self) -> RendezvousParameters:
        """Return how to reach the others.

        Without a run id: a single node's job gets a new one at each call.  A job whose own nodes serve the store
        (``RendezvousBackend.hosted_by_job``) is named after its endpoint.  In a store that other jobs may use too, a
        name is needed.

        Raises:
            UsageError: a run id is needed.
        """
        settings = {**self.rdzv_configs, **asdict(self.timeouts(), recurse=False)}
        if self.auth() is not Auth.AUTO:
            settings[AUTH_SETTING] = self.auth().value
        if self.master_port_range is not None:
            settings[PORT_RANGE_SETTING] = self.master_port_range
        if self.node_rank is not None:
            settings.setdefault("rank", self.node_rank)
        if not self.run_id and self.max_nodes > 1:
            settings.setdefault(DERIVED_SETTING, True)
        return RendezvousParameters(
            self.backend(),
            self.rdzv_endpoint,
            self.run_id or self._new_run_id(),
            self.min_nodes,
            self.max_nodes,
            self._own_address(),
            **settings,
        )

    def _own_address(self) -> str | None:
        if not self.local_addr:
            return None
        from .addresses import local_address, problem_with_name  # with ipaddress, which most jobs do not need

        address = local_address(self.local_addr)
        problem = problem_with_name(address, _NAME_SECONDS)
        if problem:
            warn(problem)
        return address

    def _new_run_id(self) -> str:
        if self.max_nodes == 1:
            return os.urandom(8).hex()
        backend: RendezvousBackend = get_host().choose(PluginKind.RENDEZVOUS, self.backend())
        if backend.hosted_by_job:
            # Only the port: nodes may well spell the host differently (localhost, a name, an address).
            return f"job-{self.rdzv_endpoint.rpartition(':')[2] or 'default'}"
        raise UsageError(
            f"several nodes use the rendezvous backend {backend.name!r}, whose store other jobs may use as well; "
            "set --rdzv-id (run_id) to a name that all nodes of this job share, and no other job"
        )

    def worker_logs_specs(self) -> LogsSpecs:
        """Return ``logs_specs`` with the duplicate filters given here, if any."""
        return self.logs_specs.with_duplicate_filters(self.duplicate_stdout_filters, self.duplicate_stderr_filters)
