"""The exit codes of ``quorate``, and which outcome gets which.  ``docs/exit-codes.md`` explains them to users."""

from __future__ import annotations

from enum import IntEnum
from typing import final

from ..errors import (
    PluginError,
    QuorateError,
    RendezvousClosedError,
    RendezvousError,
    SignalException,
    UnhealthyNodeError,
    UsageError,
)
from ..failures import ChildFailedError

__all__ = ["ExitCode", "code_of"]


@final
class ExitCode(IntEnum):
    """What the shell sees.  A job that was stopped by signal ``n`` ends with 128 + ``n``, which is not a member."""

    OK = 0  # the job succeeded
    WORKER_FAILED = 1  # workers failed, here or on another node, and no restarts were left
    USAGE = 2  # a flag, an argument or the configuration is wrong
    RENDEZVOUS = 3  # the nodes could not agree: too few in time, no connection, settings that do not fit
    PLUGIN = 4  # a plugin is broken, or two offer the same name
    UNHEALTHY = 5  # a check failed on this node, or it was excluded; the others may go on without it
    INTERNAL = 70  # a bug in quorate itself; the only exit with a traceback


#: The first class that fits counts, so narrow ones stand first.
_CODES = (
    (UsageError, ExitCode.USAGE),
    (PluginError, ExitCode.PLUGIN),
    (RendezvousError, ExitCode.RENDEZVOUS),
    (UnhealthyNodeError, ExitCode.UNHEALTHY),
    (QuorateError, ExitCode.WORKER_FAILED),
    (ChildFailedError, ExitCode.WORKER_FAILED),
)


def code_of(error: BaseException) -> int | None:
    """Return the exit code for ``error``; ``None`` for an unexpected one."""
    if isinstance(error, SignalException):
        return 128 + error.sigval
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, RendezvousClosedError):
        return ExitCode.OK if error.succeeded else ExitCode.WORKER_FAILED
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)
