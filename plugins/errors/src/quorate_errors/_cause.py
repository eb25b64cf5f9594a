"""How a worker failed, from what it left behind.

What does not live here: what to do about it (``quorate_decide_restart``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from quorate.failures import message_from_stderr
from quorate.records import Cause, FailureRecord

from ._memory import MemoryKills

__all__ = ["classify"]

# A worker, or a shell that waited for it and passed its end on as 128 + signal.
_KILLED = frozenset({-9, 128 + 9})
_ABORTED = frozenset({-6, 128 + 6})
# What a shell answers when a command cannot be executed, or is not there (POSIX, 2.8.2).
_NOT_EXECUTABLE = frozenset({126, 127})
# Whoever said so knew more than an exit code tells.
_SETTLED = frozenset({Cause.START_FAILED, Cause.HANG, Cause.UNHEALTHY, Cause.OUT_OF_MEMORY})

_NO_SCRIPT = re.compile(r"can't (open file|find '__main__' module in) ")
_NO_MODULE = re.compile(r"^\S.*: (No module named |Error while finding module specification for )")
_SYNTAX = re.compile(r"^(SyntaxError|IndentationError|TabError)\b")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+, in ')
# Who speaks, and what of: torch's process groups (gloo, NCCL), its store, and its exceptions; and a peer that is gone.
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
    # c10d's own watchdogs abort the process.
    if (failure.exit_code > 0 or failure.exit_code in _ABORTED) and _broke_over_another(failure):
        return Cause.BROKEN_COLLECTIVE
    if failure.exit_code < 0:
        return Cause.SIGNAL
    if failure.error_data:
        return Cause.EXCEPTION
    if failure.exit_code in _NOT_EXECUTABLE or _never_ran(failure.exit_code, failure.stderr_tail):
        return Cause.START_FAILED
    if message_from_stderr(failure.stderr_tail) is not None:
        return Cause.EXCEPTION
    return Cause.EXIT_CODE


def _never_ran(exit_code: int, stderr_tail: Sequence[str]) -> bool:
    """Whether Python itself refused to start the script: trying again meets the same file.

    A SyntaxError in the script is printed without a frame that ran; one in a module that it imports has such frames,
    and is an exception like any other.
    """
    lines = [line.rstrip() for line in stderr_tail if line.strip()]
    if not lines:
        return False
    if exit_code == 2:
        return any(_NO_SCRIPT.search(line) for line in lines[-3:])
    if exit_code != 1 or any(_FRAME.match(line) for line in lines):
        return False
    return bool(_NO_SCRIPT.search(lines[-1]) or _NO_MODULE.match(lines[-1]) or _SYNTAX.match(lines[-1]))


def _broke_over_another(failure: FailureRecord) -> bool:
    """Whether one line of what the worker recorded or printed says that torch lost the connection to another worker.

    Anywhere in the traceback: a script may wrap the exception, or fail in turn while it handles it.
    """
    return any(_COLLECTIVE.search(line) and _BROKEN.search(line) for line in _lines_of(failure))


def _lines_of(failure: FailureRecord) -> Iterator[str]:
    texts = [failure.message, *failure.stderr_tail]
    recorded = (failure.error_data or {}).get("message")
    extra = recorded.get("extraInfo") if isinstance(recorded, Mapping) else None
    if isinstance(extra, Mapping) and isinstance(extra.get("py_callstack"), str):
        texts.append(extra["py_callstack"])
    for text in texts:
        for line in text.splitlines():
            yield line[:_LONGEST_LINE]
