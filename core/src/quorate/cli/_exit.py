"""The exit codes of ``quorate``, and which outcome gets which.  ``docs/exit-codes.md`` tells them to users."""

from __future__ import annotations

from enum import IntEnum
from typing import final

__all__ = ["ExitCode", "code_of"]


@final
class ExitCode(IntEnum):
    """What the shell sees.  Stopped by signal ``n``: 128 + ``n``, which is no member."""

    OK = 0  # the job succeeded
    WORKER_FAILED = 1  # workers failed, here or on another node, and no restarts were left
    USAGE = 2  # a flag, an argument or the configuration is wrong
    RENDEZVOUS = 3  # the nodes could not agree: too few in time, no connection, state that does not fit
    PLUGIN = 4  # a plugin is broken, or two offer the same name
    UNHEALTHY = 5  # this node was found declined, or was excluded; the others may go on without it
    INTERNAL = 70  # a mistake in quorate itself; the only exit with a traceback


def code_of(error: BaseException) -> int | None:
    """Return the exit code for ``error``; ``None`` for one that nobody foresaw."""
    from .. import errors

    if isinstance(error, errors.SignalException):
        return 128 + error.sigval
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, errors.RendezvousClosedError):
        return ExitCode.OK if error.succeeded else ExitCode.WORKER_FAILED
    for kind, code in (
        (errors.UsageError, ExitCode.USAGE),
        (errors.PluginError, ExitCode.PLUGIN),
        (errors.RendezvousError, ExitCode.RENDEZVOUS),
        (errors.UnhealthyNodeError, ExitCode.UNHEALTHY),
        (errors.QuorateError, ExitCode.WORKER_FAILED),
    ):
        if isinstance(error, kind):
            return code
    from ..failures import ChildFailedError

    return ExitCode.WORKER_FAILED if isinstance(error, ChildFailedError) else None
