"""How a worker ended, in words and as a cause: the one description of signals, exit codes and recorded errors.

What does not live here: what plugins know besides (hook ``quorate_decide_cause``), and what is done about a failure
(:mod:`quorate.policy`).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any

from .records import Cause, FailureRecord

__all__ = [
    "call_stack_of",
    "cause_of_exit",
    "describe_exit",
    "describe_signal",
    "extra_of",
    "headline",
    "is_described_by_exit",
    "message_of",
    "signal_name",
]

_NO_SIGNAL = "<N/A>"  # as in TorchElastic: programs compare with it

_SIGNALS: Mapping[str, str] = {
    "SIGABRT": "it aborted itself: a failed assertion, an uncaught C++ exception or a watchdog of a library",
    "SIGBUS": "a mapped file or shared memory could not be read: often /dev/shm or a disk is full",
    "SIGFPE": "an arithmetic error in native code",
    "SIGHUP": "its terminal or session ended, or another process sent it",
    "SIGILL": "an instruction that this processor does not have, or corrupt code",
    "SIGINT": "interrupted from outside, not by its agent",
    "SIGKILL": "killed from outside, not by its agent; it cannot be caught",
    "SIGPIPE": "it wrote to a pipe or socket whose reader is gone",
    "SIGQUIT": "asked from outside, not by its agent, to end with a core dump",
    "SIGSEGV": "invalid memory access in native code",
    "SIGSYS": "a system call that is not allowed here",
    "SIGTERM": "asked to end from outside, not by its agent",
    "SIGTRAP": "a breakpoint or a debugger's trap",
    "SIGXCPU": "its limit of CPU time is used up",
    "SIGXFSZ": "its limit of file size is used up",
}

# What :func:`describe_exit` writes, with or without the last line of stderr.
_EXIT = re.compile(
    r"(exit code -?\d+(, last line of (stderr|its output): .*)?|Signal \d+ \([^)]*\) received by PID \d+)"
)


def signal_name(exit_code: int) -> str:
    """Return ``"SIGKILL"`` for -9 and so on; ``"<N/A>"`` for an exit code that is not a signal's."""
    if exit_code >= 0:
        return _NO_SIGNAL
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def describe_signal(exit_code: int) -> str:
    """Return what a fatal signal usually means, ``""`` for an exit code that is not a signal's."""
    return _SIGNALS.get(signal_name(exit_code), "")


def describe_exit(exit_code: int, pid: int, last_line: str = "", stream: str = "stderr") -> str:
    """Return the message for a worker that left no error of its own; ``last_line`` is the last of ``stream``."""
    if exit_code < 0:
        return f"Signal {-exit_code} ({signal_name(exit_code)}) received by PID {pid}"
    return f"exit code {exit_code}" + (f", last line of {stream}: {last_line}" if last_line else "")


def is_described_by_exit(message: str) -> bool:
    """Return whether ``message`` is a :func:`describe_exit` and so adds nothing to the exit code."""
    return _EXIT.fullmatch(message) is not None


def cause_of_exit(exit_code: int, error_data: Mapping[str, Any] | None = None) -> Cause:
    """Return the cause that an exit code and the recorded error, if any, stand for."""
    if exit_code < 0:
        return Cause.SIGNAL
    return Cause.EXCEPTION if error_data else Cause.EXIT_CODE


def message_of(error_data: Mapping[str, Any] | None) -> str | None:
    """Return the message of a recorded error, ``None`` where it has none."""
    recorded = (error_data or {}).get("message")
    if isinstance(recorded, Mapping):
        return str(recorded.get("message", recorded))
    return recorded if isinstance(recorded, str) else None


def call_stack_of(error_data: Mapping[str, Any] | None) -> str:
    """Return the traceback of a recorded error, ``""`` where it has none."""
    call_stack = extra_of(error_data).get("py_callstack")
    return call_stack if isinstance(call_stack, str) else ""


def extra_of(error_data: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the ``extraInfo`` of a recorded error, empty where it has none."""
    recorded = (error_data or {}).get("message")
    extra = recorded.get("extraInfo") if isinstance(recorded, Mapping) else None
    return extra if isinstance(extra, Mapping) else {}


def headline(failure: FailureRecord) -> str:
    """Say in a few words how a worker ended."""
    pid = f", pid {failure.pid}" if failure.pid else ""
    if failure.cause is Cause.HANG:
        return f"hung{pid}"
    if failure.cause is Cause.START_FAILED and not failure.pid:
        return "could not be started"
    if failure.cause is Cause.OUT_OF_MEMORY:
        return f"killed by the kernel, out of memory{pid}"
    if failure.exit_code < 0:
        meaning = describe_signal(failure.exit_code)
        return f"killed by {signal_name(failure.exit_code)}{pid}" + (f" ({meaning})" if meaning else "")
    return f"exit code {failure.exit_code}{pid}"
