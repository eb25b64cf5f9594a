"""``quorate run``: from the values of the flags to a launch configuration, a command, and the launch.

What does not live here: how flags are read (``_parse``), and what makes a configuration valid
(:class:`quorate.LaunchConfig`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, final

from attrs import evolve, fields

from .. import launcher
from .._default_backends import FIXED_RANKS, ONE_NODE
from .._discovery import find_plugins
from .._isolation import call_plugin
from ..agent._signals import ending_with_the_run
from ..catalogue import CliOption, PluginKind, RunRequest
from ..clusters import ClusterJob, grace_before
from ..config import LaunchConfig
from ..errors import PluginError, PreemptedError, RendezvousClosedError, UnknownBackendError, UsageError
from ..failures import ChildFailedError
from ..logs_specs import DefaultLogsSpecs, LogsSpecs, adopt_logs_specs_class
from ..net import format_endpoint, host_alone
from ..notices import note, warn, write_output
from ..plugins import PluginHost, get_host
from ._cluster import ThisMachine, find_cluster, requeue, with_cluster
from ._devices import count_workers
from ._exit import ExitCode, exit_code_of
from ._flags import FLAGS, Flag
from ._help import config_text, help_text
from ._parse import Parsed, parse
from ._stdin import script_of_stdin
from ._values import text

_DEFAULT_MASTER_ADDR = "127.0.0.1"
_DEFAULT_MASTER_PORT = 29500

Command = tuple[Callable[..., Any] | str, tuple[str, ...]]


def run(argv: Sequence[str]) -> int:
    """Carry out ``quorate run ARGV`` and return the exit code."""
    _outlive_user_signals()
    host = get_host()
    parsed = parse(argv, os.environ, flags_of(host))
    if "help" in parsed.actions:
        write_output(help_text(parsed.flags))
        return ExitCode.OK
    runner = next((flag for flag in parsed.flags if flag.run and not parsed.settings[flag.name].is_default), None)
    if runner is not None and runner.run is not None and "show-config" not in parsed.actions:
        if parsed.settings[runner.name].source == "argument":
            # What the environment says of this machine alone, such as in a pod of a job, is not meant for all nodes.
            parsed = parsed.without_environment("standalone", "node-rank", "local-addr")
        return exit_code_of(f"the plugin of --{runner.name}", runner.run, _request(parsed))
    parsed = _for_one_node(parsed)
    job = find_cluster(parsed["cluster"], host, os.environ, ThisMachine())
    if job is not None:
        parsed = with_cluster(parsed, job, host)
    if "show-config" in parsed.actions:
        _refuse_plugin_only(host, parsed)
        write_output(config_text(parsed, build_config(parsed, job)))
        return ExitCode.OK
    if parsed.script == "-" and not (parsed["module"] or parsed["no-python"]):
        with script_of_stdin() as path:
            return _launch(evolve(parsed, script=path), job, host)
    return _launch(parsed, job, host)


def _for_one_node(parsed: Parsed) -> Parsed:
    """Return ``parsed`` without what the environment says of several nodes, where an argument asks for one.

    A shell in a pod of a job has the variables of the job's nodes.
    """
    if parsed.settings["standalone"].source == "argument":
        return parsed.without_environment("nnodes", "node-rank")
    nodes = parsed.settings["nnodes"]
    return parsed.without_environment("node-rank") if nodes.source == "argument" and nodes.value[1] == 1 else parsed


def _request(parsed: Parsed) -> RunRequest:
    texts = {name: setting.text or "" for name, setting in parsed.settings.items() if not setting.is_default}
    return RunRequest(texts, parsed.script, parsed.arguments)


def _launch(parsed: Parsed, job: ClusterJob | None, host: PluginHost) -> int:
    config, (command, arguments) = check_launch(parsed, host, job)
    _print_notes(parsed, config)
    launch = launcher.launch(config, command, host=host)
    try:
        with ending_with_the_run():
            launch(*arguments)
    except PreemptedError as error:
        if parsed["requeue"]:
            requeue(job, error, ThisMachine())
        raise
    except (ChildFailedError, RendezvousClosedError) as error:
        verdict = error.verdict
        if parsed["exit-code"] == "worker" and verdict is not None and verdict.first_cause and not verdict.is_final:
            code = verdict.first_cause.exit_code
            raise WorkerExitCode(code if code >= 0 else 128 - code, error) from error
        raise
    return ExitCode.OTHERS_UNKNOWN if launch.others_unknown else ExitCode.OK


@final
class WorkerExitCode(Exception):  # noqa: N818 - it is an exit code; the error is in it
    """The job ended by ``error``, and the exit code is to be that of the worker that caused it."""

    def __init__(self, code: int, error: ChildFailedError | RendezvousClosedError) -> None:
        super().__init__(code)
        self.code, self.error = code, error


def _outlive_user_signals() -> None:
    """Outlive SIGUSR1 and SIGUSR2 while no worker runs, too: they would kill a program that has no handler for them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, frame: None)


def check_launch(parsed: Parsed, host: PluginHost, job: ClusterJob | None = None) -> tuple[LaunchConfig, Command]:
    """Return the launch configuration and the command that the flags ask for; nothing is started.

    Raises:
        UsageError: a value cannot be used, contradicts another, or names what is not there.
    """
    _refuse_plugin_only(host, parsed)
    config = build_config(parsed, job)
    command = build_command(parsed)
    if not parsed.settings["start-method"].is_default:
        host.choose(PluginKind.STARTER, config.start_method)
    _prepare_log_dir(parsed["log-dir"])
    return config, command


def flags_of(host: PluginHost) -> tuple[Flag, ...]:
    """Return the table of flags with those of the plugins of ``host``; raises as :func:`flags_with`."""
    return flags_with(
        host.catalogue(PluginKind.CLI_OPTION).values(), lambda name: host.owner_of(PluginKind.CLI_OPTION, name)
    )


def flags_with(
    options: Iterable[CliOption], owner_of: Callable[[str], str] = lambda name: "a plugin"
) -> tuple[Flag, ...]:
    """Return the table of flags with those that plugins offer.

    Raises:
        PluginError: a plugin's option has the name of a flag of the core, or one that cannot be a flag's.
    """
    flags = {flag.name: flag for flag in FLAGS}
    for option in options:
        name = option.name.replace("_", "-")
        if name in flags and not flags[name].plugin_only:
            raise PluginError(
                f"{owner_of(option.name)} offers the flag --{name}, which is one of quorate's own; it needs another "
                "name. Until then leave it out: QUORATE_DISABLE_PLUGINS"
            )
        flags[name] = Flag(
            name,
            option.metavar,
            option.default,
            text,
            option.help,
            section="From plugins",
            is_setting=True,
            apply=option.apply,
            run=option.run,
        )
    return tuple(flags.values())


def _refuse_plugin_only(host: PluginHost, parsed: Parsed) -> None:
    for flag in parsed.flags:
        if flag.plugin_only and not parsed.settings[flag.name].is_default:
            try:
                host.choose(PluginKind.CLI_OPTION, flag.name)
            except UnknownBackendError as error:
                raise UsageError(
                    f"--{flag.name} is not available: no installed plugin offers it. {error.remedy}; "
                    f"or remove the flag (or {flag.variable})"
                ) from None


# --- the configuration ----------------------------------------------------------------------------------------------

#: The flag ``--cluster`` is a name; the field is what the scheduler of that name says.
_FIELDS = frozenset(each.name for each in fields(LaunchConfig)) - {"cluster"}


def build_config(parsed: Parsed, job: ClusterJob | None = None) -> LaunchConfig:
    """Return the launch configuration that the flags ask for.

    Raises:
        UsageError: a value cannot be used, or contradicts another.
    """
    min_nodes, max_nodes = parsed["nnodes"]
    workers = parsed["nproc-per-node"]
    meeting = _rendezvous(parsed)
    config = LaunchConfig(
        **{
            **{flag.field: parsed[flag.name] for flag in parsed.flags if flag.field in _FIELDS},
            "min_nodes": min_nodes,
            "max_nodes": max_nodes,
            "nproc_per_node": workers if isinstance(workers, int) else count_workers(workers),
            "run_id": parsed["rdzv-id"] or "",
            "rdzv_configs": parsed["rdzv-conf"],
            "logs_specs": _logs_specs(parsed),
            "log_line_prefix_template": os.environ.get("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"),
            "settings": _settings(parsed),
            "cluster": None,
            **meeting,
        }
    )
    if job is None:
        return config
    # Only now are the numbers of nodes known to be numbers of nodes.
    if meeting["node_rank"] is not None:  # the user's, where it was given
        job = evolve(job, node_rank=meeting["node_rank"])
    return evolve(config, cluster=job.described(min_nodes, max_nodes, meeting["rdzv_endpoint"]))


def _settings(parsed: Parsed) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for flag in parsed.flags:
        setting = parsed.settings[flag.name]
        if not flag.is_setting or setting.text is None:
            continue
        if flag.apply is None:
            result[flag.field] = setting.value
        else:
            call_plugin(f"the plugin of --{flag.name}", flag.apply, setting.text, result)
    return result


def _rendezvous(parsed: Parsed) -> dict[str, Any]:
    """Return backend, endpoint, node rank and the pinned ``MASTER_ADDR``/``MASTER_PORT``.

    The last two are used where ranks are fixed: on one node, and with ``static``.  With an elastic backend rank 0
    may move, and an address pinned to one node would then be wrong.
    """
    max_nodes, backend, endpoint = parsed["nnodes"][1], parsed["rdzv-backend"], parsed["rdzv-endpoint"] or ""
    result: dict[str, Any] = {
        "rdzv_backend": backend,
        "rdzv_endpoint": endpoint,
        "node_rank": parsed["node-rank"],
        "master_addr": None,
        "master_port": None,
        "master_port_range": parsed["master-port-range"],
    }
    if parsed["standalone"]:
        if max_nodes > 1:
            raise UsageError(
                f"--standalone runs one node, but --nnodes asks for up to {max_nodes}; remove one of the two"
            )
        return {**result, "rdzv_backend": ONE_NODE, "rdzv_endpoint": "", "node_rank": None}
    if backend != FIXED_RANKS:
        return result
    address = host_alone(parsed["master-addr"] or "") or None
    if parsed["master-addr"] and not address:
        raise UsageError(
            f"--master-addr={parsed['master-addr']} is not a host; write its name or address alone, and its port as "
            "--master-port"
        )
    port, ports = _master_port(parsed)
    result.update(master_addr=address, master_port=port, master_port_range=ports)
    if max_nodes == 1 and not endpoint:
        return {**result, "rdzv_backend": ONE_NODE}
    result["node_rank"] = parsed["node-rank"] or 0
    if endpoint:
        return result
    address, port = address or _DEFAULT_MASTER_ADDR, port or _DEFAULT_MASTER_PORT
    if not 1 <= port <= 65534:
        raise UsageError(f"--master-port={port} must be from 1 to 65534, because rendezvous uses the port above it")
    result.update(rdzv_endpoint=format_endpoint(address, port + 1), master_addr=address)
    if ports:
        return {**result, "master_port": None}
    return {**result, "master_port": port, "rdzv_configs": {"shared_port": port, **parsed["rdzv-conf"]}}


def _master_port(parsed: Parsed) -> tuple[int | None, str | None]:
    """Return the pinned ``MASTER_PORT`` and the range, of which at most one is set.

    An argument stands above what is set elsewhere.  Clusters set the variable of the port for every job, so that a
    range in a variable stands above that.
    """
    port, ports = parsed["master-port"] or None, parsed["master-port-range"]
    if not port or not ports:
        return port, ports
    if parsed.settings["master-port"].source != "argument":
        return None, ports
    if parsed.settings["master-port-range"].source != "argument":
        return port, None
    raise UsageError(
        f"--master-port={port} and --master-port-range={ports} contradict each other; remove one of the two"
    )


def _logs_specs(parsed: Parsed) -> LogsSpecs:
    kind = _find_logs_specs(parsed["logs-specs"]) if parsed["logs-specs"] else DefaultLogsSpecs
    return kind(
        log_dir=parsed["log-dir"] or None,
        redirects=parsed["redirects"],
        tee=parsed["tee"],
        local_ranks_filter=parsed["local-ranks-filter"],
    )


def _find_logs_specs(name: str) -> Callable[..., LogsSpecs]:
    if name == "default":
        return DefaultLogsSpecs
    known = {found.name: found for found in find_plugins(group="torchrun.logs_specs")}
    if name not in known:
        remedy = "Install a distribution with an entry point of that name in group torchrun.logs_specs"
        raise UnknownBackendError("logs specs", name, sorted({"default", *known}), remedy)
    what = f"logs specs {name!r} of {known[name].distribution}"
    kind = call_plugin(f"{what} could not be loaded: it", known[name].load)
    try:
        make = adopt_logs_specs_class(kind)
        return lambda **settings: call_plugin(what, partial(make, **settings))
    except UsageError as error:
        raise PluginError(f"{what} {error}") from None


# --- the command ----------------------------------------------------------------------------------------------------


def build_command(parsed: Parsed) -> Command:
    """Return the entrypoint and its arguments.

    Raises:
        UsageError: no script was given, it does not exist, or two flags contradict each other.
    """
    script, arguments = parsed.script, parsed.arguments
    if not script:
        raise UsageError("a script is missing; write: quorate run [FLAGS] SCRIPT [ARGUMENTS]")
    if parsed["run-path"]:
        _check_script(script)
        return launcher.run_script_path, (os.path.join(_current_folder(), script), *arguments)
    if parsed["no-python"]:
        if parsed["module"]:
            raise UsageError("--no-python and --module contradict each other; remove one of the two")
        _check_program(script)
        return script, arguments
    python = os.environ.get("PYTHON_EXEC") or sys.executable
    if parsed["module"]:
        return python, ("-u", "-m", script, *arguments)
    _check_script(script)
    if script.startswith("-"):  # behind "--": a file all the same, and not an option of Python's
        script = os.path.join(".", script)
    return python, ("-u", script, *arguments)


def _check_script(script: str) -> None:
    # A macro is only known once there is a worker.  Python also runs folders and archives.
    if "$" not in script and not os.path.exists(script):
        remedy = "check the path"
        if not script.endswith(".py") and "/" not in script:
            remedy += ", or write -m for a module and --no-python for a program"
        raise UsageError(f"the script {script} does not exist in {_current_folder()}; {remedy}")


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the current directory cannot be used: {error.strerror} (it was deleted?); change to another one"
        ) from None


def _check_program(program: str) -> None:
    if "$" in program:
        return
    places = [program] if "/" in program else [os.path.join(folder, program) for folder in os.get_exec_path()]
    if not any(os.path.isfile(place) and os.access(place, os.X_OK) for place in places):
        where = "an executable file" if "/" in program else "an executable on PATH"
        raise UsageError(f"the program {program} is not {where}; check its name and permissions (--no-python)")


def _prepare_log_dir(folder: str | None) -> None:
    """Make the log folder, so that a wrong one is reported before this node joins the job."""
    if not folder:
        return
    problem = ""
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or half a character
        problem = getattr(error, "strerror", None) or "it is not a path"
    if not problem and not os.access(folder, os.W_OK | os.X_OK):
        problem = "it is not writable"
    if problem:
        raise UsageError(f"the log folder {folder} cannot be used: {problem}; set --log-dir to a writable folder")


# --- notes for people -----------------------------------------------------------------------------------------------


def _print_notes(parsed: Parsed, config: LaunchConfig) -> None:
    """Say on stderr what is ignored or assumed."""
    ignored: list[str] = []
    if parsed["standalone"]:
        ignored = ["rdzv-backend", "rdzv-endpoint", "node-rank", "master-addr", "master-port"]
    elif config.rdzv_backend not in (FIXED_RANKS, ONE_NODE):
        ignored = ["master-addr", "master-port"]
    for name in ignored:
        # Clusters set the variables for every job, whether it uses them or not.
        if parsed.settings[name].source == "argument":
            note(f"--{name} is ignored with {'--standalone' if parsed['standalone'] else config.rdzv_backend}")
    job, grace = config.cluster, config.shutdown_timeout
    left = None if job is None or job.kill_seconds is None else grace_before(job.kill_seconds)
    if job is not None and left is not None and grace > left and not parsed.settings["shutdown-timeout"].is_default:
        warn(
            f"--shutdown-timeout={grace:g}, but {job.scheduler} kills {job.kill_seconds:g} s after its SIGTERM; "
            f"the workers get {left:g} s then"
        )
    if config.nproc_per_node > 1 and "OMP_NUM_THREADS" not in os.environ:
        note(f"each of the {config.nproc_per_node} workers gets OMP_NUM_THREADS=1; set the variable to change that")
