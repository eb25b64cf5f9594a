"""The exit codes of ``quorate``: which there are, which error has which, and those of programs of plugins.

``docs/exit-codes.md`` explains them to users.  What does not live here: ``--exit-code=worker`` (``_run``).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeGuard, final

from .. import policy
from .._isolation import checked_answer
from ..errors import (
    PluginError,
    PreemptedError,
    QuorateError,
    RendezvousClosedError,
    RendezvousError,
    SignalException,
    UnhealthyNodeError,
    UsageError,
)
from ..failures import ChildFailedError
from ..notices import write_error


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


#: The first class that fits counts, so narrow ones stand first.
_CODES = (
    (UsageError, ExitCode.USAGE),
    (PluginError, ExitCode.PLUGIN),
    (PreemptedError, ExitCode.PREEMPTED),
    (RendezvousError, ExitCode.RENDEZVOUS),
    (UnhealthyNodeError, ExitCode.UNHEALTHY),
    (QuorateError, ExitCode.WORKER_FAILED),
    (ChildFailedError, ExitCode.WORKER_FAILED),
)


def code_of(error: BaseException) -> int | None:
    """Return the exit code for ``error``; ``None`` for an unexpected one."""
    if getattr(getattr(error, "verdict", None), "is_final", False):
        return ExitCode.DO_NOT_RESTART
    if isinstance(error, SignalException):
        return 128 + error.sigval
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, RendezvousClosedError):
        return ExitCode.OK if error.succeeded else ExitCode.WORKER_FAILED
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


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
