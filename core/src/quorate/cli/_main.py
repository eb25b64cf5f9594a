"""Chooses the subcommand, and turns every outcome into an exit code and one sentence.

What does not live here: the subcommands (``_run``, ``_plugins``, ``_conformance``), and the exit codes (``_exit``).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeGuard

from .. import __version__, notices
from .._discovery import COMMANDS_GROUP, FoundPlugin, find_plugins
from .._isolation import checked_answer, described, problem_of
from .._poll import frames_of
from ..errors import (
    PreemptedError,
    UsageError,
)
from ..failures import ChildFailedError
from ..lazy_exports import lazy_function
from ..notices import LONGEST_LINE, write_error, write_output
from ..plugins import usual_packages_of_commands
from ..text import near_names
from ._exit import ExitCode, code_of, exit_code_of
from ._init import go_on_below_init
from ._plugins import show
from ._run import WorkerExitCode, run

_USAGE = """\
usage: quorate COMMAND ...

commands:
  run          run one node of a job; see: quorate run --help
  plugins      show which plugins are installed, what they offer, and what is wrong with them
  conformance  test a rendezvous backend with the conformance kit; see: quorate conformance --help
{offered}
options:
  --help, --version"""

#: What commands of distributions of this project do: no plugin is loaded for --help.
_SUMMARIES = {
    "exec": "run a program that calls torchrun, with quorate in its place",
    "detached": "show and end jobs that were started with --detach=1",
}


def execute(argv: Sequence[str]) -> int:
    """Run the command line ``argv`` and return the exit code."""
    try:
        go_on_below_init()
        return _dispatch(argv)
    except (Exception, KeyboardInterrupt) as error:
        return _report(error)
    finally:
        notices.flush()


def leave(code: int) -> NoReturn:
    """End the process and skip interpreter shutdown, which takes half a second with torch loaded (c10d)."""
    atexit._run_exitfuncs()
    notices.flush()
    os._exit(code)


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "plugins": show,
    # The kit, its simulation and argparse are imported for this subcommand alone.
    "conformance": lazy_function("quorate.cli._conformance", "test_backend"),
}


def _usage() -> str:
    offered = {
        found.name: f"{_SUMMARIES.get(found.name, f'of {found.distribution}')}; see: quorate {found.name} --help"
        for found in _offered()
    }
    for name, package in usual_packages_of_commands().items():
        offered.setdefault(name, f"{_SUMMARIES.get(name, f'of {package}')}; not installed: pip install {package}")
    return _USAGE.format(offered="".join(f"  {name:<12} {text}\n" for name, text in sorted(offered.items())))


def _offered() -> list[FoundPlugin]:
    """Return the subcommands that installed distributions offer (entry points of ``quorate.commands``)."""
    return find_plugins(group=COMMANDS_GROUP)


def _find_command(name: str) -> Callable[[Sequence[str]], int] | None:
    """Return the subcommand ``name`` that an installed distribution offers.

    Raises:
        PluginError: it could not be imported.
    """
    found = next((found for found in _offered() if found.name == name), None)
    if found is None:
        return None
    what = f"the command {name!r} of {found.distribution}"
    command = checked_answer(f"{what} could not be loaded: it", _is_command, "a function", found.load)
    return partial(exit_code_of, what, command)


def _is_command(answer: Any) -> TypeGuard[Callable[[Any], Any]]:
    return callable(answer)


def _dispatch(argv: Sequence[str]) -> int:
    command = argv[0] if argv else ""
    if command in _COMMANDS:
        return _COMMANDS[command](argv[1:])
    if command in ("-h", "--help", "help"):
        write_output(_usage())
        return ExitCode.OK
    if command == "--version":
        write_output(f"quorate {__version__}")
        return ExitCode.OK
    offered = _find_command(command) if command and not command.startswith("-") else None
    if offered is not None:
        return offered(argv[1:])
    raise _unknown(command)


def _unknown(command: str) -> UsageError:
    if not command:
        return UsageError("a command is missing; write 'quorate run SCRIPT' (see: quorate --help)")
    if command.startswith("-") or command.endswith(".py"):
        return UsageError(f"{command} is not a command; did you mean 'quorate run {command} ...'?")
    package = usual_packages_of_commands().get(command)
    if package is not None:
        return UsageError(f"the command {command!r} is not installed; pip install {package}")
    names = [*_COMMANDS, *(found.name for found in _offered())]
    near = near_names(command, names)
    remedy = f"did you mean 'quorate {near[0]}'?" if near else f"the commands are {', '.join(names)}"
    return UsageError(f"{command!r} is not a command; {remedy}")


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong: one sentence, or a failed worker's report."""
    if isinstance(error, WorkerExitCode):
        _report(error.error)
        return error.code
    code = code_of(error)
    culprit = None if code is not None else _plugin_that_raised(error)
    if culprit is not None:
        write_error(f"quorate: error: plugin {culprit} raised {described(error)} outside of its hooks")
        return ExitCode.PLUGIN
    if code is None:
        sys.__excepthook__(type(error), error, error.__traceback__)  # not one that the program has replaced
        write_error("quorate: internal error: the traceback above is a bug in quorate; please report it")
        return ExitCode.INTERNAL
    if isinstance(error, ChildFailedError):
        write_error(f"quorate: error: {error}")
    elif isinstance(error, PreemptedError):
        write_error(f"quorate: preempted: {error}; the job can be started again (exit code {code})")
    elif isinstance(error, KeyboardInterrupt):
        write_error("quorate: interrupted")
    else:
        kind = "error: " if 0 < code < 128 else ""
        write_error(f"quorate: {kind}{_cut(' '.join(problem_of(error).split()))}")
        verdict = getattr(error, "verdict", None)
        details = "\n".join(verdict.details()) if verdict is not None and kind else ""
        if details:
            write_error(details)
    return code


def _plugin_that_raised(error: BaseException) -> FoundPlugin | None:
    """Return the plugin of others whose code raised ``error``: in a handler of a signal, for example."""
    frames = frames_of(error)
    package = _package(str(frames[-1].f_globals.get("__name__"))) if frames else ""
    if package.startswith("quorate"):
        return None
    return next((found for found in find_plugins() if _package(found.target.partition(":")[0]) == package), None)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _cut(sentence: str) -> str:
    """Return ``sentence`` without its middle where it is too long: the remedy stands at its end."""
    if len(sentence) <= LONGEST_LINE:
        return sentence
    return f"{sentence[: LONGEST_LINE // 4]} … {sentence[-LONGEST_LINE // 2 :]}"
