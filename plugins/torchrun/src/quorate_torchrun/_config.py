"""``LaunchConfig`` as TorchElastic's programs make it: a dataclass that may be changed until the launch.

What does not live here: what the values must be (:class:`quorate.LaunchConfig` checks them), and the launch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import quorate
from quorate.catalogue import PluginKind
from quorate.logs_specs import adopt_logs_specs
from quorate.net import format_endpoint, parse_endpoint
from quorate.plugins import get_host


@dataclass
class LaunchConfig:
    """One node's part of a job; fields, order and defaults are torch's, but for ``rdzv_backend``.

    ``rdzv_backend`` empty: ``standalone`` for one node without an endpoint, else ``tcp``.  The fields from
    ``node_rank`` on are quorate's own.
    """

    min_nodes: int
    max_nodes: int
    nproc_per_node: int
    logs_specs: Any = None
    run_id: str = ""
    role: str = "default_role"
    rdzv_endpoint: str = ""
    rdzv_backend: str = ""
    rdzv_configs: dict[str, Any] = field(default_factory=dict)
    rdzv_timeout: int = -1
    max_restarts: int = 3
    monitor_interval: float = 0.1
    start_method: str = "spawn"
    log_line_prefix_template: str | None = None
    metrics_cfg: dict[str, str] = field(default_factory=dict)
    local_addr: str | None = None
    event_log_handler: str = "null"
    numa_options: Any = None
    signals_to_handle: str = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
    duplicate_stdout_filters: list[str] | None = None
    duplicate_stderr_filters: list[str] | None = None
    virtual_local_rank: bool = False
    shutdown_timeout: float | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    exit_barrier_timeout: float = 300.0
    health_interval: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logs_specs is None:
            self.logs_specs = quorate.DefaultLogsSpecs()

    @classmethod
    def from_quorate(cls, config: quorate.LaunchConfig) -> LaunchConfig:
        """Return ``config`` as a dataclass."""
        values = {each.name: getattr(config, each.name) for each in fields(cls) if hasattr(config, each.name)}
        for name in ("rdzv_configs", "environment", "settings", "metrics_cfg"):
            values[name] = dict(values[name])
        for name in ("duplicate_stdout_filters", "duplicate_stderr_filters"):
            values[name] = list(values[name])
        values["signals_to_handle"] = ",".join(values["signals_to_handle"])
        return cls(**values)


def to_quorate(config: Any) -> quorate.LaunchConfig:
    """Return the frozen configuration for this dataclass or for torch's own.

    Raises:
        UsageError: a value cannot be used.
    """
    if isinstance(config, quorate.LaunchConfig):
        return config
    names = [each.name for each in fields(LaunchConfig) if each.name not in ("numa_options", "logs_specs")]
    values = {name: getattr(config, name) for name in names if hasattr(config, name)}
    values["logs_specs"] = None if config.logs_specs is None else adopt_logs_specs(config.logs_specs)
    values["settings"] = with_numa(values.get("settings", {}), getattr(config, "numa_options", None))
    values.update(_meeting_point(config))
    return quorate.LaunchConfig(**values)


def _meeting_point(config: Any) -> dict[str, Any]:
    """Translate what torch means by ``static`` and by an endpoint with port 0.

    Torch's ``static`` endpoint is the address and port of the workers' store.  In quorate these are ``MASTER_ADDR`` and
    ``MASTER_PORT``, and the nodes meet one port above.
    """
    backend, endpoint, one_node = config.rdzv_backend, (config.rdzv_endpoint or "").strip(), config.max_nodes == 1
    if backend == "static" and endpoint and getattr(config, "master_port", None) is None:
        where = parse_endpoint(endpoint, default_port=0, lowest_port=0)
        address, port = where.host, where.port
        if one_node:
            return {"rdzv_backend": "", "rdzv_endpoint": "", "master_addr": address, "master_port": port or None}
        if not 1 <= port <= 65534:
            raise quorate.UsageError(
                f"the endpoint {endpoint!r} of the static rendezvous needs a port from 1 to 65534, because the nodes "
                "meet at the port above it"
            )
        return {
            "rdzv_endpoint": format_endpoint(address, port + 1),
            "rdzv_configs": {"shared_port": port, **config.rdzv_configs},
            "master_addr": address,
            "master_port": port,
        }
    if backend == "c10d" and one_node and endpoint in ("", "localhost:0", "127.0.0.1:0"):
        return {"rdzv_backend": "", "rdzv_endpoint": ""}
    return {}


def with_numa(settings: Mapping[str, Any], numa_options: Any) -> dict[str, Any]:
    """Return ``settings`` with what the plugin that binds workers reads of torch's ``NumaOptions``."""
    result = dict(settings)
    if numa_options is None:
        return result
    option = get_host().catalogue(PluginKind.CLI_OPTION).get("numa-binding")
    if option is None:
        raise quorate.UsageError(
            "numa_options is set, but no installed plugin binds workers to CPUs (--numa-binding); "
            "set numa_options=None, or install a plugin that does"
        )
    mode = numa_options.affinity_mode
    option.apply(str(getattr(mode, "value", mode)), result)
    return result
