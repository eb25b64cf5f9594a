"""``quorate run``: from the values of the flags to a launch configuration, a command, and the launch.

What does not live here: how flags are read (``_parse``), and what makes a configuration valid
(:mod:`quorate.config`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..catalogue import PluginKind
from ..errors import PluginError, UsageError
from ._exit import ExitCode
from ._flags import FLAGS, Flag
from ._parse import Parsed, Setting, parse
from ._values import text

if TYPE_CHECKING:
    from ..catalogue import CliOption
    from ..config import LaunchConfig
    from ..logs_specs import LogsSpecs
    from ..plugins import PluginHost

__all__ = ["build_command", "build_config", "flags_with", "run"]

_DEFAULT_MASTER_ADDR = "127.0.0.1"
_DEFAULT_MASTER_PORT = 29500

Command = tuple["Callable[..., Any] | str", tuple[str, ...]]


def run(argv: Sequence[str]) -> int:
    """Carry out ``quorate run ARGV`` and return the exit code."""
    from ..plugins import get_host

    host = get_host()
    options: Mapping[str, CliOption] = host.catalogue(PluginKind.CLI_OPTION)
    flags = flags_with(options)
    parsed = parse(argv, os.environ, flags)
    if "help" in parsed.actions:
        from ._help import help_text

        print(help_text(flags))
        return ExitCode.OK
    _refuse_plugin_only(flags, parsed.settings)
    config = build_config(parsed.settings, options)
    if "show-config" in parsed.actions:
        from ._help import config_text

        print(config_text(flags, parsed, config))
        return ExitCode.OK
    command, arguments = build_command(parsed)
    _check_start_method(host, parsed.settings["start-method"])
    _prepare_log_dir(parsed.settings["log-dir"].value)
    _note(parsed.settings, config)
    from ..launcher import launch

    launch(config, command, host=host)(*arguments)
    return ExitCode.OK


def flags_with(options: Mapping[str, CliOption]) -> tuple[Flag, ...]:
    """Return the table of flags with those that plugins offer.

    Raises:
        PluginError: a plugin's option has the name of a flag of ours.
    """
    if not options:
        return FLAGS
    taken = {flag.name: flag for flag in FLAGS}
    for option in options.values():
        name = option.name.replace("_", "-")
        if name in taken and not taken[name].plugin_only:
            raise PluginError(
                f"a plugin offers the flag --{name}, which is one of quorate's own; it needs another name"
            )
        taken[name] = Flag(name, "VALUE", option.default, text, option.help, "From plugins")
    return tuple(taken.values())


def _refuse_plugin_only(flags: Sequence[Flag], settings: Mapping[str, Setting]) -> None:
    for flag in flags:
        if flag.plugin_only and not settings[flag.name].is_default:
            raise UsageError(
                f"--{flag.name} is not available: no installed plugin offers it; "
                f"remove it (or {flag.variable}), or install a plugin that does"
            )


def _check_start_method(host: PluginHost, start_method: Setting) -> None:
    if not start_method.is_default:
        host.choose(PluginKind.STARTER, start_method.value)


# --- the configuration ----------------------------------------------------------------------------------------------


def build_config(settings: Mapping[str, Setting], options: Mapping[str, CliOption] | None = None) -> LaunchConfig:
    """Return the launch configuration that the flags ask for.

    Raises:
        UsageError: a value cannot be used, or contradicts another.
    """
    from ..config import LaunchConfig

    value = {name: setting.value for name, setting in settings.items()}
    min_nodes, max_nodes = value["nnodes"]
    return LaunchConfig(
        min_nodes,
        max_nodes,
        _count_workers(value["nproc-per-node"]),
        run_id=value["rdzv-id"] or "",
        role=value["role"],
        rdzv_configs=value["rdzv-conf"],
        max_restarts=value["max-restarts"],
        monitor_interval=value["monitor-interval"],
        start_method=value["start-method"],
        logs_specs=_logs_specs(value),
        log_line_prefix_template=os.environ.get("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"),
        local_addr=value["local-addr"] or None,
        event_log_handler=value["event-log-handler"],
        duplicate_stdout_filters=value["duplicate-stdout-filters"],
        duplicate_stderr_filters=value["duplicate-stderr-filters"],
        signals_to_handle=value["signals-to-handle"],
        shutdown_timeout=value["shutdown-timeout"],
        exit_barrier_timeout=value["exit-barrier-timeout"],
        virtual_local_rank=value["virtual-local-rank"],
        health_interval=value["health-interval"],
        settings=_plugin_settings(settings, options or {}),
        **_meeting(value, max_nodes),
    )


def _meeting(value: Mapping[str, Any], max_nodes: int) -> dict[str, Any]:
    """Return backend, endpoint, node rank and the pinned ``MASTER_ADDR``/``MASTER_PORT``.

    The last two are honoured where ranks are fixed: on one node, and with ``static``.  With an elastic backend rank 0
    may move, and an address pinned to one node would then be wrong.
    """
    if value["standalone"] and max_nodes > 1:
        raise UsageError(f"--standalone runs one node, but --nnodes asks for up to {max_nodes}; remove one of the two")
    backend, endpoint = value["rdzv-backend"], value["rdzv-endpoint"] or ""
    if value["standalone"]:
        return {"rdzv_backend": "standalone"}
    if backend != "static":
        return {"rdzv_backend": backend, "rdzv_endpoint": endpoint, "node_rank": value["node-rank"]}
    pinned = _pinned(value)
    if max_nodes == 1 and not endpoint:
        return {"rdzv_backend": "standalone", "node_rank": value["node-rank"], **pinned}
    fixed = {"rdzv_backend": "static", "node_rank": value["node-rank"] or 0}
    if endpoint:
        return {**fixed, "rdzv_endpoint": endpoint, **pinned}
    address = pinned.get("master_addr", _DEFAULT_MASTER_ADDR)
    port = pinned.get("master_port", _DEFAULT_MASTER_PORT)
    if not 1 <= port <= 65534:
        raise UsageError(f"--master-port={port} must be from 1 to 65534, because the nodes meet one port above it")
    host = f"[{address}]" if ":" in address else address
    return {**fixed, "rdzv_endpoint": f"{host}:{port + 1}", "master_addr": address, "master_port": port}


def _pinned(value: Mapping[str, Any]) -> dict[str, Any]:
    address = value["master-addr"]
    pinned = {"master_addr": address.strip("[]") if address else None, "master_port": value["master-port"] or None}
    return {name: given for name, given in pinned.items() if given is not None}


def _count_workers(wanted: int | str) -> int:
    if isinstance(wanted, int):
        return wanted
    from ._devices import count_workers

    return count_workers(wanted)


def _logs_specs(value: Mapping[str, Any]) -> LogsSpecs:
    from ..logs_specs import DefaultLogsSpecs

    kind: Callable[..., LogsSpecs] = DefaultLogsSpecs
    if value["logs-specs"]:
        kind = _find_logs_specs(value["logs-specs"])
    return kind(
        log_dir=value["log-dir"] or None,
        redirects=value["redirects"],
        tee=value["tee"],
        local_ranks_filter=value["local-ranks-filter"],
    )


def _find_logs_specs(name: str) -> Callable[..., LogsSpecs]:
    from .._discovery import find_plugins
    from ..errors import UnknownBackendError
    from ..logs_specs import LogsSpecs

    if name == "default":
        from ..logs_specs import DefaultLogsSpecs

        return DefaultLogsSpecs
    known = {found.name: found for found in find_plugins(group="torchrun.logs_specs")}
    if name not in known:
        remedy = "Install a distribution with an entry point of that name in group torchrun.logs_specs"
        raise UnknownBackendError("logs specs", name, sorted({"default", *known}), remedy)
    from importlib import import_module

    module, _, attribute = known[name].target.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except Exception as error:
        raise PluginError(
            f"logs specs {name!r} of {known[name].distribution} could not be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, LogsSpecs)):
        raise PluginError(f"logs specs {name!r} of {known[name].distribution} is no subclass of quorate.LogsSpecs")
    return kind


def _plugin_settings(settings: Mapping[str, Setting], options: Mapping[str, CliOption]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for option in options.values():
        setting = settings[option.name.replace("_", "-")]
        if setting.text is not None:
            option.apply(setting.text, result)
    return result


# --- the command ----------------------------------------------------------------------------------------------------


def build_command(parsed: Parsed) -> Command:
    """Return the entrypoint and its arguments.

    Raises:
        UsageError: there is no script, it does not exist, or two flags contradict each other.
    """
    value = {name: setting.value for name, setting in parsed.settings.items()}
    script, arguments = parsed.script, parsed.arguments
    if not script:
        raise UsageError("a script is missing; write: quorate run [FLAGS] SCRIPT [ARGUMENTS]")
    if value["run-path"]:
        from ..launcher import run_script_path

        _check_script(script)
        return run_script_path, (os.path.abspath(script), *arguments)
    if value["no-python"]:
        if value["module"]:
            raise UsageError("--no-python and --module contradict each other; remove one of the two")
        _check_program(script)
        return script, arguments
    python = os.environ.get("PYTHON_EXEC") or sys.executable
    if value["module"]:
        return python, ("-u", "-m", script, *arguments)
    _check_script(script)
    return python, ("-u", script, *arguments)


def _check_script(script: str) -> None:
    # A macro is only known once there is a worker.  Python also runs folders and archives.
    if "${" not in script and not os.path.exists(script):
        remedy = "check the path"
        if not script.endswith(".py") and "/" not in script:
            remedy += ", or write -m for a module and --no-python for a program"
        raise UsageError(f"the script {script} does not exist in {os.getcwd()}; {remedy}")


def _check_program(program: str) -> None:
    if "${" in program:
        return
    places = [program] if "/" in program else [os.path.join(folder, program) for folder in os.get_exec_path()]
    if not any(os.path.isfile(place) and os.access(place, os.X_OK) for place in places):
        where = "an executable file" if "/" in program else "an executable on PATH"
        raise UsageError(f"the program {program} is not {where}; check its name and permissions (--no-python)")


def _prepare_log_dir(folder: str | None) -> None:
    """Make the log directory now: a wrong one should be told before other nodes count on this one."""
    if not folder:
        return
    problem = ""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if not problem and not os.access(folder, os.W_OK | os.X_OK):
        problem = "it is not writable"
    if problem:
        raise UsageError(f"the log directory {folder} cannot be used: {problem}; set --log-dir to a writable folder")


# --- what a person should know --------------------------------------------------------------------------------------


def _note(settings: Mapping[str, Setting], config: LaunchConfig) -> None:
    """Tell on stderr what is ignored or assumed."""
    ignored: list[str] = []
    if settings["standalone"].value:
        ignored = ["rdzv-backend", "rdzv-endpoint", "node-rank", "master-addr", "master-port"]
    elif config.rdzv_backend not in ("static", "standalone"):
        ignored = ["master-addr", "master-port"]
    for name in ignored:
        # Clusters set the variables for every job, whether it uses them or not.
        if settings[name].source == "argument":
            _say(
                f"--{name} is ignored with " + ("--standalone" if settings["standalone"].value else config.rdzv_backend)
            )
    if config.nproc_per_node > 1 and "OMP_NUM_THREADS" not in os.environ:
        _say(f"each of the {config.nproc_per_node} workers gets OMP_NUM_THREADS=1; set the variable to change that")


def _say(sentence: str) -> None:
    sys.stderr.write(f"quorate: note: {sentence}\n")
