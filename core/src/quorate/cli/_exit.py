"""The exit codes of ``quorate``, and those of programs of plugins.  ``docs/exit-codes.md`` explains them to users."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeGuard, final

from .. import policy
from .._isolation import checked_answer
from ..notices import write_error

__all__ = ["ExitCode", "exit_code_of"]


@final
class ExitCode(IntEnum):
    """What the shell sees.  A job that was stopped by signal ``n`` ends with 128 + ``n``, which is not a member."""

    OK = 0  # the job succeeded
    WORKER_FAILED = 1  # workers failed, here or on another node, and no restarts were left
    USAGE = 2  # a flag, an argument or the configuration is wrong
    RENDEZVOUS = 3  # the nodes could not agree: too few in time, no connection, settings that do not fit
    PLUGIN = 4  # a plugin is broken, or two offer the same name
    UNHEALTHY = 5  # a check failed on this node, or it was excluded; the others may go on without it
    OTHERS_UNKNOWN = 6  # this node's workers have succeeded; the store was lost before the others' fate was known
    DO_NOT_RESTART = policy.DO_NOT_RESTART  # the worker or the policy said that starting the job again cannot help
    PREEMPTED = 75  # the scheduler ends the job: start it again
    INTERNAL = 70  # a bug in quorate itself; the only exit with a traceback


def exit_code_of(what: str, program: Callable[[Any], Any], argument: Any) -> int:
    """Call a plugin's function that runs instead of a job; ``sys.exit`` counts as its answer.

    Raises:
        QuorateError: what the function raised, if it is one.
        PluginError: it raised anything else, or answered with what is not an exit code; begins with ``what``.
    """

    def run() -> Any:
        try:
            return program(argument)
        except SystemExit as stop:
            if isinstance(stop.code, str):
                write_error(stop.code)
                return 1
            return 0 if stop.code is None else stop.code

    return checked_answer(what, _is_exit_code, "an exit code", run)


def _is_exit_code(answer: Any) -> TypeGuard[int]:
    return isinstance(answer, int) and 0 <= answer <= 255
