"""``JobVerdict``: why a job ended, for people (the report on stderr) and for programs (``verdict.json``).

Everything in it that came from the job's record is the same on every node; what only this node knows stands apart.
What does not live here: how a failure is classified and what is done about it (:mod:`quorate.policy` and plugins), nor
what a worker's exception looks like on disk (:mod:`quorate.failures`).  Only the end of a run imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, final

from attrs import frozen

from .failures import signal_name
from .records import Cause, FailureRecord, RoundEnd, Verdict

__all__ = ["FILE_NAME", "FORMAT", "JobState", "JobVerdict", "describe_signal"]

FILE_NAME = "verdict.json"
#: The number in the file's field ``format``; fields may be added without a new one.
FORMAT = 1

_MOST_ROUNDS = 20
_MOST_VICTIMS = 16
_MOST_MESSAGE_LINES = 20
_MOST_TRACEBACK_LINES = 30
_MOST_STDERR_LINES = 20

# What is said of a worker that left no word of its own: the headline has it all.
_SAYS_NOTHING_NEW = r"^(exit code -?\d+(, last words: .*)?|Signal \d+ \([^)]*\) received by PID \d+)$"

_SIGNALS: Mapping[str, str] = {
    "SIGABRT": "it aborted itself: a failed assertion, an uncaught C++ exception or a watchdog of a library",
    "SIGBUS": "a mapped file or shared memory could not be read: often /dev/shm or a disk is full",
    "SIGFPE": "an arithmetic error in native code",
    "SIGHUP": "its terminal or session ended, or somebody sent it",
    "SIGILL": "an instruction that this processor does not have, or corrupt code",
    "SIGINT": "interrupted by somebody other than its agent",
    "SIGKILL": "somebody other than its agent killed it; nothing can catch that",
    "SIGPIPE": "it wrote to a pipe or socket that nobody reads any more",
    "SIGQUIT": "asked by somebody other than its agent to end with a core dump",
    "SIGSEGV": "invalid memory access in native code",
    "SIGSYS": "a system call that is not allowed here",
    "SIGTERM": "asked to end by somebody other than its agent",
    "SIGTRAP": "a breakpoint or a debugger's trap",
    "SIGXCPU": "its limit of CPU time is used up",
    "SIGXFSZ": "its limit of file size is used up",
}


@final
class JobState(str, Enum):
    """How the job, or this node's part in it, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # this agent was told to stop
    UNHEALTHY = "unhealthy"  # this node is not fit, or was excluded; the others may go on
    STORE_LOST = "store_lost"  # the store was away for too long, or for good
    NO_ROUND = "no_round"  # no (further) round was agreed upon


@final
@frozen
class JobVerdict:
    """Why a job ended on this node.

    Arguments:
        run_id, node_id, host: the job, and the node that says so.
        state, cause, reason: how it ended; ``reason`` is a sentence.
        first_cause: the failure of a worker that ended the job, as recorded for all nodes.
        victims: other failures of this node's workers, in the order in which they came to light.
        rounds: the rounds that ended while this node was a member, oldest first.
        restarts_used, restarts_allowed: of the whole job.
        signal_number: what this agent was stopped with.
        time_ns: wall time of the verdict.
    """

    run_id: str
    node_id: str
    host: str
    state: JobState
    cause: Cause
    reason: str
    first_cause: FailureRecord | None = None
    victims: tuple[FailureRecord, ...] = ()
    rounds: tuple[RoundEnd, ...] = ()
    restarts_used: int = 0
    restarts_allowed: int = 0
    signal_number: int | None = None
    time_ns: int = 0

    def report(self, name: str) -> str:
        """Return the report for people on the failure of the entrypoint ``name``."""
        return "\n".join([f"{name} failed", *([self.reason] if self.reason else ()), *self.details()])

    def details(self) -> Iterator[str]:
        """Yield the report's lines after the reason: root cause, rounds, restarts, and what only this node knows."""
        if self.first_cause is not None:
            yield "root cause:"
            yield from _failure(self.first_cause)
        if self.rounds:
            yield "what was done about it:"
            yield from _rounds(self.rounds, self.restarts_allowed)
        yield from _victims(self.victims, self.host)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``verdict.json``; ``docs/failures.md`` tells what its fields mean."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "state": self.state.value,
            "cause": self.cause.value,
            "reason": self.reason,
            "signal": _signal(-self.signal_number) if self.signal_number is not None else None,
            "first_cause": None if self.first_cause is None else _describe(self.first_cause),
            "rounds": [_describe_round(end) for end in self.rounds],
            "restarts": {"used": self.restarts_used, "allowed": self.restarts_allowed},
            "time_ns": self.time_ns,
            "this_node": {
                "node": self.node_id,
                "host": self.host,
                "victims": [_describe(failure) for failure in self.victims],
            },
        }

    def write(self, folder: str) -> None:
        """Write ``verdict.json`` into ``folder``: by temporary file and rename, so that a reader meets all or nothing.

        Raises:
            OSError: it cannot be written; no temporary file is left.
        """
        import json

        content = json.dumps(self.to_json(), indent=1, default=str)
        path = os.path.join(folder, FILE_NAME)
        temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            with open(temporary, "x", encoding="ascii") as file:
                file.write(content + "\n")
            os.replace(temporary, path)
        except BaseException:
            try:
                os.unlink(temporary)
            except OSError:
                pass  # it was not made
            raise


# --- for people -----------------------------------------------------------------------------------------------------


def describe_signal(exit_code: int) -> str:
    """Return what a fatal signal usually means, empty for an exit code that is none."""
    return _SIGNALS.get(signal_name(exit_code), "") if exit_code < 0 else ""


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


def _failure(failure: FailureRecord) -> Iterator[str]:
    import re  # only a failure pays for it

    where = f" on {failure.host}" if failure.host else ""
    node = f" (node {failure.node_id[:8]})" if failure.node_id else ""
    yield f"  rank {failure.rank} (local rank {failure.local_rank}){where}{node}: {headline(failure)}"
    yield f"  cause {failure.cause.value}, attempt {failure.restart_count}, at {_utc(failure.timestamp_ns)}"
    if not re.match(_SAYS_NOTHING_NEW, failure.message):
        yield from (f"  {line}" for line in failure.message.splitlines()[:_MOST_MESSAGE_LINES])
    if failure.cause is Cause.HANG:
        yield "  all workers of its node have written their stacks into their logs (without log files: on its console)"
    if failure.cause is Cause.BROKEN_COLLECTIVE:
        yield "  nobody has told of a failure that it broke over: its peer may have ended early, or the network broke"
    if failure.error_data and failure.error_file:
        yield f"  error file: {failure.error_file}"
    callstack = _callstack(failure)
    if callstack:
        yield from (f"  | {line}" for line in callstack.splitlines()[-_MOST_TRACEBACK_LINES:])
    elif failure.stderr_tail:
        yield "  last lines of its stderr:"
        yield from (f"  | {line}" for line in failure.stderr_tail[-_MOST_STDERR_LINES:])


def _rounds(rounds: Sequence[RoundEnd], allowed: int) -> Iterator[str]:
    shown = rounds[-_MOST_ROUNDS:]
    if shown[0].round_number > 0:
        yield f"  rounds before {shown[0].round_number}: see {FILE_NAME} of a node that was there"
    for end in shown:
        yield f"  round {end.round_number}: {_why(end)} -> {_what_then(end, allowed)}"
        if end.missing:
            yield f"    {', '.join(end.missing)} in that round: probably its root cause"


def _why(end: RoundEnd) -> str:
    if end.failure is None:
        return f"{end.cause.value} ({end.reason})"
    where = f" on {end.host}" if end.host else ""
    return f"{end.cause.value} of rank {end.failure.rank}{where}"


def _what_then(end: RoundEnd, allowed: int) -> str:
    if end.verdict is Verdict.RESTART:
        pause = f" after {end.delay_seconds:.1f} s" if end.delay_seconds > 0 else ""
        gone = ", without this node" if end.lost else ""
        return f"restart {end.restart_count} of {allowed}{pause}{gone}"
    if end.verdict is Verdict.RESCALE:
        return "a new round, at no cost"
    return f"the job {'was stopped' if end.verdict is Verdict.STOPPED else end.verdict.value}"


def _victims(victims: Sequence[FailureRecord], host: str) -> Iterator[str]:
    if not victims:
        return
    yield f"failed after it on {host}:" if host else "failed after it:"
    for failure in victims[:_MOST_VICTIMS]:
        yield f"  rank {failure.rank} (local rank {failure.local_rank}): {failure.cause.value}, {headline(failure)}"
    if len(victims) > _MOST_VICTIMS:
        yield f"  and {len(victims) - _MOST_VICTIMS} more"


def _utc(time_ns: int) -> str:
    """Return a wall time to the nanosecond, in the same words on every host."""
    from datetime import datetime, timezone

    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"


def _callstack(failure: FailureRecord) -> str:
    recorded = (failure.error_data or {}).get("message")
    extra = recorded.get("extraInfo") if isinstance(recorded, Mapping) else None
    callstack = extra.get("py_callstack") if isinstance(extra, Mapping) else None
    return callstack if isinstance(callstack, str) else ""


# --- for programs ---------------------------------------------------------------------------------------------------


def _describe(failure: FailureRecord) -> dict[str, Any]:
    return {
        "rank": failure.rank,
        "local_rank": failure.local_rank,
        "role": failure.role,
        "node": failure.node_id,
        "host": failure.host,
        "attempt": failure.restart_count,
        "pid": failure.pid,
        "time_ns": failure.timestamp_ns,
        "cause": failure.cause.value,
        "exit_code": failure.exit_code,
        "signal": _signal(failure.exit_code),
        "message": failure.message,
        "traceback": _callstack(failure) or None,
        "stderr": list(failure.stderr_tail[-_MOST_STDERR_LINES:]),
        "error_file": failure.error_file or None,
    }


def _signal(exit_code: int) -> dict[str, Any] | None:
    if exit_code >= 0:
        return None
    return {"number": -exit_code, "name": signal_name(exit_code), "meaning": describe_signal(exit_code) or None}


def _describe_round(end: RoundEnd) -> dict[str, Any]:
    return {
        "round": end.round_number,
        "cause": end.cause.value,
        "verdict": end.verdict.value,
        "reason": end.reason,
        "rank": end.rank,
        "node": end.node_id,
        "host": end.host,
        "restart_count": end.restart_count,
        "delay_seconds": end.delay_seconds,
        "lost_group_ranks": list(end.lost_ranks),
        "missing": list(end.missing),
        "first_cause": None if end.failure is None else _describe(end.failure),
    }
