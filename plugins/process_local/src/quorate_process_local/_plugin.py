"""The entry point's object: which start methods there are.  Each is imported when it is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from quorate.catalogue import StarterBackend
from quorate.hookspecs import hookimpl

if TYPE_CHECKING:
    from quorate.starter import Starter, StarterRequest

__all__ = ["plugin"]


def _command_starter(request: StarterRequest) -> Starter:
    from ._exec import ExecStarter

    return ExecStarter(request)


def _function_starter(request: StarterRequest) -> Starter:
    from ._functions import FunctionStarter

    return FunctionStarter(request)


@final
class plugin:  # noqa: N801 - the entry point's name
    """The object that the entry point names."""

    @staticmethod
    @hookimpl
    def quorate_register_starter() -> Iterable[StarterBackend]:
        """Offer one start method for commands and three for functions."""
        return (
            StarterBackend("exec", "runs a command", "command", _command_starter),
            StarterBackend("spawn", "calls a function in a new interpreter", "function", _function_starter),
            StarterBackend("fork", "calls a function in a copy of the agent", "function", _function_starter),
            StarterBackend("forkserver", "calls a function in a copy of a clean server", "function", _function_starter),
        )
