"""The entry point's object: the start methods that this plugin offers, and its flag.

What does not live here: the start methods themselves; those for functions are imported when they are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from quorate.catalogue import CliOption, StarterBackend
from quorate.errors import UsageError
from quorate.hookspecs import hookimpl
from quorate.notices import warn
from quorate.starter import Starter, StarterRequest

from ._exec import ExecStarter


def _command_starter(request: StarterRequest) -> Starter:
    _warn_of_preload(request)
    return ExecStarter(request)


def _function_starter(request: StarterRequest) -> Starter:
    from ._functions import FunctionStarter  # with multiprocessing

    _warn_of_preload(request)
    return FunctionStarter(request)


def _warm_starter(request: StarterRequest) -> Starter:
    from ._warm import WarmStarter  # with the template's protocol

    return WarmStarter(request)


def _warn_of_preload(request: StarterRequest) -> None:
    if request.settings.get("preload"):
        warn(f"--preload is ignored: the start method is {request.start_method}, and only warm imports anything ahead")


def _note_preload(value: str, settings: dict[str, Any]) -> None:
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(f"--preload takes names of modules, separated by commas, and {name!r} is not a name")
    settings["preload"] = tuple(names)


@final
class plugin:  # noqa: N801 - the entry point's name
    """The object that the entry point names."""

    @staticmethod
    @hookimpl
    def quorate_register_starter() -> Iterable[StarterBackend]:
        """Offer one start method for commands, three for functions, and one for both."""
        return (
            StarterBackend("exec", "runs a command", "command", _command_starter),
            StarterBackend("spawn", "calls a function in a new interpreter", "function", _function_starter),
            StarterBackend("fork", "calls a function in a copy of the agent", "function", _function_starter),
            StarterBackend("forkserver", "calls a function in a copy of a clean server", "function", _function_starter),
            StarterBackend(
                "warm", "runs Python in a copy of a process that has imported --preload", "any", _warm_starter
            ),
        )

    @staticmethod
    @hookimpl
    def quorate_register_cli_options() -> Iterable[CliOption]:
        """Offer the flag that says what warm workers find imported."""
        return (
            CliOption(
                "preload", "modules to import before workers start; only for --start-method=warm", None, _note_preload
            ),
        )
