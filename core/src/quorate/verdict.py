"""``JobVerdict``: why a job ended, for people (the report on stderr) and for programs (``verdict.json``).

Everything in it that came from the job's record is the same on every node; what only this node knows stands apart.
What does not live here: how a failure is described and classified (:mod:`quorate.diagnosis`, plugins), what is done
about it (:mod:`quorate.policy`), and what a worker's exception looks like on disk (:mod:`quorate.failures`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import Any, final

from attrs import frozen

from .clusters import ClusterJob
from .diagnosis import call_stack_of, describe_signal, headline, is_described_by_exit, signal_name
from .files import write_atomically
from .records import Cause, FailureRecord, RoundEnd, Verdict
from .text import printable

__all__ = ["FILE_NAME", "FORMAT", "JobState", "JobVerdict", "LiveRound"]

FILE_NAME = "verdict.json"
#: The number in the file's field ``format``; fields may be added without a new one.
FORMAT = 1

_MOST_ROUNDS = 20
_MOST_VICTIMS = 16
_MOST_MESSAGE_LINES = 20
_MOST_TRACEBACK_LINES = 30
_MOST_STDERR_LINES = 20
_LONGEST_LINE = 8192


@final
class JobState(str, Enum):
    """How the job, or this node's part in it, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # this agent was asked to stop
    PREEMPTED = "preempted"  # the scheduler ends the job, or takes this node
    UNHEALTHY = "unhealthy"  # a check failed on this node, or it was excluded; the others may go on
    STORE_LOST = "store_lost"  # the store was unreachable for too long, or is gone
    NO_ROUND = "no_round"  # no (further) round was formed


@final
@frozen
class LiveRound:
    """A round into which workers of this node have lived on.

    ``kept`` and ``started`` are the pids of those and of the new ones, ``pause_seconds`` the time from the end of the
    round before, for this node's workers, until all of this one were there.
    """

    round_number: int
    kept: tuple[int, ...]
    started: tuple[int, ...]
    pause_seconds: float


@final
@frozen
class JobVerdict:
    """Why a job ended on this node.

    Arguments:
        run_id, node_id, host: the job, and the node whose verdict it is.
        state, cause, reason: how it ended; ``reason`` is a sentence.
        first_cause: the failure of a worker that ended the job, as recorded for all nodes.
        victims: other failures of this node's workers, in the order in which they were noticed.
        rounds: the rounds that ended while this node was a member, oldest first.
        restarts_used, restarts_allowed: of the whole job.
        signal_number: what this agent was stopped with.
        cluster: the job of a cluster's scheduler that this one is, if there is one.
        time_ns: wall time of the verdict.
        live_rounds: the rounds into which workers of this node have lived on, oldest first; the last hundred.
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
    cluster: ClusterJob | None = None
    live_rounds: tuple[LiveRound, ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether starting the job again cannot help, as the restart policy says."""
        return bool(self.rounds) and self.rounds[-1].is_final

    def report(self, name: str) -> str:
        """Return the report for people on the failure of the entrypoint ``name``."""
        reason = [printable(line, _LONGEST_LINE) for line in self.reason.splitlines()]
        return "\n".join([printable(f"{name} failed", _LONGEST_LINE), *reason, *self.details()])

    def details(self) -> Iterator[str]:
        """Yield the report's lines after the reason: root cause, rounds, restarts, and what only this node knows.

        Workers and other nodes wrote much of it: nothing in it steers a terminal, and long lines are cut.
        """
        return (printable(line, _LONGEST_LINE) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        if self.first_cause is not None:
            yield "root cause:"
            yield from _failure(self.first_cause)
        if self.rounds:
            yield "history:"
            yield from _rounds(self.rounds, self.restarts_allowed)
        yield from _victims(self.victims, self.host)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``verdict.json``; ``docs/failures.md`` describes its fields."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "cluster": None if self.cluster is None else self.cluster.to_json(),
            "state": self.state.value,
            "cause": self.cause.value,
            "reason": self.reason,
            "is_final": self.is_final,
            "signal": _signal(-self.signal_number) if self.signal_number is not None else None,
            "first_cause": None if self.first_cause is None else _describe(self.first_cause),
            "rounds": [_describe_round(end) for end in self.rounds],
            "restarts": {"used": self.restarts_used, "allowed": self.restarts_allowed},
            "time_ns": self.time_ns,
            "this_node": {
                "node": self.node_id,
                "host": self.host,
                "victims": [_describe(failure) for failure in self.victims],
                "live_rounds": [_describe_live(each) for each in self.live_rounds],
            },
        }

    def write(self, folder: str) -> None:
        """Write ``verdict.json`` into ``folder``, atomically.

        Raises:
            OSError: it cannot be written; no temporary file is left.
        """
        content = json.dumps(self.to_json(), indent=1, default=str)
        write_atomically(os.path.join(folder, FILE_NAME), content + "\n", mode=None)


# --- for people -----------------------------------------------------------------------------------------------------


def _failure(failure: FailureRecord) -> Iterator[str]:
    where = f" on {failure.host}" if failure.host else ""
    node = f" (node {failure.node_id[:8]})" if failure.node_id else ""
    yield f"  rank {failure.rank} (local rank {failure.local_rank}){where}{node}: {headline(failure)}"
    yield f"  cause {failure.cause.value}, attempt {failure.restart_count}, at {_utc(failure.timestamp_ns)}"
    if not is_described_by_exit(failure.message):
        yield from (f"  {line}" for line in failure.message.splitlines()[:_MOST_MESSAGE_LINES])
    if failure.cause is Cause.HANG:
        yield "  all workers of its node have written their stacks into their logs (without log files: on its console)"
    if failure.cause is Cause.BROKEN_COLLECTIVE:
        yield "  no node has recorded a failure that explains it: its peer may have ended early, or the network broke"
    if failure.error_data and failure.error_file:
        yield f"  error file: {failure.error_file}"
    call_stack = call_stack_of(failure.error_data)
    if call_stack:
        yield from (f"  | {line}" for line in call_stack.splitlines()[-_MOST_TRACEBACK_LINES:])
    elif failure.stderr_tail:
        yield f"  last lines of its {'output' if failure.has_both_streams else 'stderr'}:"
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
    yield f"on {host}, failed after the root cause:" if host else "failed after the root cause:"
    for failure in victims[:_MOST_VICTIMS]:
        yield f"  rank {failure.rank} (local rank {failure.local_rank}): {failure.cause.value}, {headline(failure)}"
    if len(victims) > _MOST_VICTIMS:
        yield f"  and {len(victims) - _MOST_VICTIMS} more"


def _utc(time_ns: int) -> str:
    """Return a wall time to the nanosecond, in the same words on every host."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"


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
        "traceback": call_stack_of(failure.error_data) or None,
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


def _describe_live(live: LiveRound) -> dict[str, Any]:
    return {
        "round": live.round_number,
        "kept": list(live.kept),
        "started": list(live.started),
        "pause_seconds": live.pause_seconds,
    }
