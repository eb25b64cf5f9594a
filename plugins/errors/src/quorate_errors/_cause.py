"""How a worker failed, from what it left behind.

What does not live here: what a cause is (:class:`quorate.records.Cause`), and what to do about it
(``quorate_decide_restart``).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence

from quorate.failures import call_stack_of, message_from_stderr
from quorate.policy import default_cause
from quorate.records import Cause, FailureRecord

from ._memory import MemoryKills

# The exit code of a worker, or of a shell that waited for it and reports its end as 128 + signal.
_KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})
_ABORTED = frozenset({-signal.SIGABRT, 128 + signal.SIGABRT})
# What a shell answers when a command cannot be executed, or is not there (POSIX, 2.8.2).
_NOT_EXECUTABLE = frozenset({126, 127})
# Decided by the agent or a watchdog, which know more than an exit code tells.
_SETTLED = frozenset({Cause.START_FAILED, Cause.HANG, Cause.UNHEALTHY, Cause.OUT_OF_MEMORY})

_NO_SCRIPT = re.compile(r"can't (open file|find '__main__' module in) ")
_NO_MODULE = re.compile(r"^\S.*: (No module named |Error while finding module specification for )")
_SYNTAX = re.compile(r"^(SyntaxError|IndentationError|TabError)\b")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+, in ')
# A line matches both: it names torch's process groups (gloo, NCCL), store or exceptions, and a connection that broke.
_COLLECTIVE = re.compile(r"\bgloo\b|nccl|ProcessGroup|TCPStore|\bDist(Network|Backend|Store)Error\b", re.IGNORECASE)
_BROKEN = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|communicator was aborted"
    r"|ncclRemoteError|remote (process|peer|worker|rank)|failed to recv|client socket has (failed|timed out)"
    r"|collective operation timeout",
    re.IGNORECASE,
)
_LONGEST_LINE = 4096


def classify(failure: FailureRecord, kills: MemoryKills) -> Cause:
    """Return the cause of ``failure``; ``kills`` are the kernel's kills that no failure accounts for yet."""
    if failure.cause in _SETTLED:
        return failure.cause
    if failure.exit_code in _KILLED and kills.take():
        return Cause.OUT_OF_MEMORY
    # SIGABRT counts too: c10d's own watchdog aborts the process.
    if (failure.exit_code > 0 or failure.exit_code in _ABORTED) and _is_broken_collective(failure):
        return Cause.BROKEN_COLLECTIVE
    if failure.exit_code >= 0 and not failure.error_data:
        if failure.exit_code in _NOT_EXECUTABLE or _never_ran(failure.exit_code, failure.stderr_tail):
            return Cause.START_FAILED
        if message_from_stderr(failure.stderr_tail) is not None:
            return Cause.EXCEPTION
    return default_cause(failure)


def _never_ran(exit_code: int, stderr_tail: Sequence[str]) -> bool:
    """Return whether Python refused to start the script, which it would do again.

    A SyntaxError in the script is printed without a frame that ran.  One in a module that the script imports has such
    frames, and is an exception like any other.
    """
    lines = [line.rstrip() for line in stderr_tail if line.strip()]
    if not lines:
        return False
    if exit_code == 2:
        return any(_NO_SCRIPT.search(line) for line in lines[-3:])
    if exit_code != 1 or any(_FRAME.match(line) for line in lines):
        return False
    return bool(_NO_SCRIPT.search(lines[-1]) or _NO_MODULE.match(lines[-1]) or _SYNTAX.match(lines[-1]))


def _is_broken_collective(failure: FailureRecord) -> bool:
    """Return whether torch reported, in one line of output or error, that the connection to another worker broke.

    The whole traceback counts: a script may wrap the exception, or fail while it handles it.
    """
    return any(_COLLECTIVE.search(line) and _BROKEN.search(line) for line in _lines_of(failure))


def _lines_of(failure: FailureRecord) -> Iterator[str]:
    for text in (failure.message, *failure.stderr_tail, call_stack_of(failure.error_data)):
        for line in text.splitlines():
            yield line[:_LONGEST_LINE]
