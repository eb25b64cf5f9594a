"""The environment, the log destinations and the arguments of each worker.

What does not live here: where logs go (:mod:`quorate.logs_specs`), and starting workers (``_runner``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from string import Template
from typing import Any

from ..errors import UsageError
from ..job_token import without_token
from ..net import host_name, is_local_name
from ..records import Assignment, WorkerLaunch, WorkerLogs
from ._spec import RunSettings, WorkerSpec

#: ``${local_rank}`` and ``$local_rank``; a second dollar before it makes it text.
_LOCAL_RANK_MACRO = re.compile(r"(\$?)\$(local_rank\b|\{local_rank\})")
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_PREFIX_WHEN_TEED = "[${role_name}${local_rank}]: "


def worker_environment(
    spec: WorkerSpec, assignment: Assignment, local_rank: int, run_id: str, base: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of one worker.  ``base`` is the agent's own."""
    environment = common_environment(spec, assignment.local_world_size, base)
    environment.update(
        {
            "RANK": str(assignment.first_rank + local_rank),
            "LOCAL_RANK": str(local_rank),
            "GROUP_RANK": str(assignment.group_rank),
            "ROLE_RANK": str(assignment.first_role_rank + local_rank),
            "ROLE_NAME": assignment.role,
            "WORLD_SIZE": str(assignment.world_size),
            "LOCAL_WORLD_SIZE": str(assignment.local_world_size),
            "GROUP_WORLD_SIZE": str(assignment.group_world_size),
            "ROLE_WORLD_SIZE": str(assignment.role_world_size),
            "MASTER_ADDR": spec.master_addr or assignment.master_addr,
            "MASTER_PORT": str(spec.master_port or assignment.master_port),
            "TORCHELASTIC_RESTART_COUNT": str(assignment.restart_count),
            "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
            "TORCHELASTIC_RUN_ID": run_id,
            "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(spec.signals_to_handle),
            "TORCHELASTIC_USE_AGENT_STORE": str(
                assignment.shares_store and not spec.master_addr and not spec.master_port
            ),
            "QUORATE_ROUND": str(assignment.round_number),
            "QUORATE_GENERATION": str(assignment.generation),
        }
    )
    if spec.virtual_local_rank:
        _virtualize(environment, local_rank)
    return environment


def base_environment(spec: WorkerSpec, defaults: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with ``defaults`` for what is not set in it.

    The variables of the job token are left out unless ``spec.share_job_token``: a training program has no use for
    them, and may log its environment.

    A default whose name begins with ``QUORATE_`` always counts: an agent that runs inside another agent's worker has
    inherited that agent's variables, and its own workers must not use them.
    """
    own = {name: value for name, value in defaults.items() if name.startswith("QUORATE_")}
    inherited = os.environ if spec.share_job_token else without_token(os.environ)
    return {**defaults, **inherited, **own}


def common_environment(spec: WorkerSpec, local_world_size: int, base: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a worker's environment that does not depend on its ranks.  ``base`` is the agent's own."""
    environment = {**base, **spec.environment}
    # A fatal signal, or the agent's request for the stacks of a hung worker, then leaves the Python stacks in the log.
    environment.setdefault("PYTHONFAULTHANDLER", "1")
    environment.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if local_world_size > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def check_visible_devices(spec: WorkerSpec) -> None:
    """Check that there is a device for each worker where every worker is to see one only.

    Raises:
        UsageError: ``CUDA_VISIBLE_DEVICES`` shows fewer.
    """
    visible = {**os.environ, **spec.environment}.get("CUDA_VISIBLE_DEVICES")
    if not spec.virtual_local_rank or visible is None:
        return
    count = len(_devices_in(visible))
    if count < spec.local_world_size:
        raise UsageError(
            f"{spec.local_world_size} workers need a device each (--virtual-local-rank), but "
            f"CUDA_VISIBLE_DEVICES={visible} shows {count}; lower --nproc-per-node, or show more devices"
        )


def _devices_in(visible: str) -> list[str]:
    return [device.strip() for device in visible.split(",") if device.strip()]


def _virtualize(environment: dict[str, str], local_rank: int) -> None:
    """Show the worker its own device only, as device 0."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    devices = [] if visible is None else _devices_in(visible)
    environment["CUDA_VISIBLE_DEVICES"] = devices[local_rank] if local_rank < len(devices) else str(local_rank)
    environment["LOCAL_RANK"] = "0"


def build_launches(
    settings: RunSettings,
    assignment: Assignment,
    run_id: str,
    change: Callable[[WorkerLaunch, Assignment], WorkerLaunch],
    defaults: Mapping[str, str],
) -> list[WorkerLaunch]:
    """Return what to start on this node, one launch per local rank.

    ``defaults`` are variables that workers get as :func:`base_environment` says.

    Raises:
        UsageError: the log folder cannot be used.
    """
    spec, logs_specs, prefix_template = settings.spec, settings.logs_specs, settings.prefix_template
    base = base_environment(spec, defaults)
    environments = {
        local_rank: worker_environment(spec, assignment, local_rank, run_id, base)
        for local_rank in range(assignment.local_world_size)
    }
    _name_interface(environments, assignment, spec.local_addr)
    dest = logs_specs.reify(environments)
    launches: list[WorkerLaunch] = []
    for local_rank, environment in environments.items():
        error_file = dest.error_files.get(local_rank, "")
        if error_file:
            environment["TORCHELASTIC_ERROR_FILE"] = error_file
        teed = bool(dest.tee_stdouts or dest.tee_stderrs)
        template = prefix_template if prefix_template is not None else (_PREFIX_WHEN_TEED if teed else None)
        rank = assignment.first_rank + local_rank
        shown = logs_specs.local_ranks_filter is None or local_rank in logs_specs.local_ranks_filter
        shown = shown and (spec.console_ranks is None or rank in spec.console_ranks)
        duplicates = [
            (stream, path, words)
            for stream, path, words in (
                ("stdout", dest.filtered_stdout, logs_specs.duplicate_stdout_filters),
                ("stderr", dest.filtered_stderr, logs_specs.duplicate_stderr_filters),
            )
            if path and words
        ]
        logs = WorkerLogs(
            stdout=dest.stdouts.get(local_rank),
            stderr=dest.stderrs.get(local_rank),
            tee_stdout=local_rank in dest.tee_stdouts,
            tee_stderr=local_rank in dest.tee_stderrs,
            prefix=None if template is None else _prefix(template, environment, assignment, local_rank),
            console=shown,
            duplicates=tuple(duplicates),
        )
        launch = WorkerLaunch(
            local_rank=local_rank,
            rank=rank,
            role=assignment.role,
            entrypoint=spec.entrypoint,
            args=tuple(_expand(argument, local_rank) for argument in spec.args),
            environment=environment,
            error_file=error_file,
            logs=logs,
        )
        launches.append(change(launch, assignment))
    return launches


def _name_interface(environments: Mapping[int, dict[str, str]], assignment: Assignment, local_addr: str | None) -> None:
    """Have collectives use the interface of this node's advertised address; what is set stays.

    That is the one that ``--local-addr`` asks for, else the one over which this node reaches the first.
    """
    if assignment.group_world_size == 1 or is_local_name(assignment.master_addr):
        return
    from ..addresses import interface_of, interface_towards, local_address  # with ipaddress, which few jobs need

    try:
        interface = interface_of(local_address(local_addr)) if local_addr else ""
    except UsageError:  # the address has gone since this node has joined
        interface = ""
    for environment in environments.values():
        # MASTER_ADDR may be a name, and this machine's own name a loopback address.
        interface = interface or interface_towards(environment["MASTER_ADDR"])
        interface = interface or interface_towards(assignment.master_addr)
        if not interface:
            return
        for name in _INTERFACE_VARIABLES:
            environment.setdefault(name, interface)


def _expand(argument: Any, local_rank: int) -> Any:
    if not isinstance(argument, str):
        return argument
    return _LOCAL_RANK_MACRO.sub(lambda macro: f"${macro[2]}" if macro[1] else str(local_rank), argument)


def _prefix(template: str, environment: Mapping[str, str], assignment: Assignment, local_rank: int) -> str:
    """Expand ``${role_name} ${rank} ${local_rank} ${node_rank} ${hostname} ${attempt} ${round} ${run_id}``."""
    return Template(template).safe_substitute(
        role_name=assignment.role,
        rank=assignment.first_rank + local_rank,
        local_rank=local_rank,
        node_rank=assignment.group_rank,
        group_rank=assignment.group_rank,
        hostname=host_name(),
        attempt=assignment.restart_count,
        round=assignment.round_number,
        run_id=environment["TORCHELASTIC_RUN_ID"],
    )
