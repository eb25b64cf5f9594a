"""The exit codes of ``quorate``.  ``docs/exit-codes.md`` explains them to users."""

from __future__ import annotations

from enum import IntEnum
from typing import final

from .. import policy

__all__ = ["ExitCode"]


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
