"""The state of the agent and its workers as one object for JSON: ``/status.json``, and what the page shows.

What does not live here: how it is shown (:mod:`._page`).
"""

from __future__ import annotations

import os
import threading
from typing import Any, final

from attrs import frozen

from quorate import __version__
from quorate.clock import monotonic, wall_time_ns
from quorate.failures import call_stack_of, signal_name
from quorate.proc import descendants_of, resident_bytes
from quorate.records import FailureRecord, RoundEnd
from quorate.services import AgentView, WorkerSnapshot

from ._journal import Journal, RoundEntry
from ._pulse import Pulse
from ._tail import clean, tail_of

_FRESH_SECONDS = 0.5
_LOG_LINES = 8
_LONGEST_MESSAGE_LINES = 60


@final
class Status:
    """Collects the state at most twice a second, however many clients ask; between two looks they get the last one."""

    def __init__(self, agent: AgentView, journal: Journal, pulse: Pulse) -> None:
        self._agent, self._journal, self._pulse = agent, journal, pulse
        self._looking = threading.Lock()
        self._last: dict[str, Any] | None = None
        self._fresh_until = 0.0

    def look(self) -> dict[str, Any]:
        """Return the status.

        Where another thread's look is stuck (at a log on a dead file system), this returns the last complete one.
        """
        last = self._last
        if not self._looking.acquire(blocking=last is None):
            assert last is not None
            return last
        try:
            if self._last is None or monotonic() >= self._fresh_until:
                self._last = self._look()
                self._fresh_until = monotonic() + _FRESH_SECONDS
            return self._last
        finally:
            self._looking.release()

    def _look(self) -> dict[str, Any]:
        turn_seconds = self._pulse.ask()
        snapshot, now = self._agent.snapshot(), monotonic()
        ends = {end.round_number: end for end in snapshot.ends}
        failed = next((end for end in reversed(snapshot.ends) if end.failure is not None), None)
        return {
            "time": round(wall_time_ns() / 1e9, 3),
            "run_id": snapshot.run_id,
            "cluster": None if snapshot.cluster is None else snapshot.cluster.to_json(),
            "node_id": snapshot.node_id,
            "host": snapshot.host,
            "role": snapshot.role,
            "agent_pid": os.getpid(),
            "version": __version__,
            "up_seconds": round(now - self._journal.begun_at, 3),
            "is_live": turn_seconds is not None,
            "turn_seconds": turn_seconds,
            "is_ready": snapshot.is_running,
            "phase": snapshot.phase,
            "reason": snapshot.reason,
            "round": snapshot.round_number,
            "group_rank": snapshot.group_rank,
            "group_world_size": snapshot.group_world_size,
            "world_size": snapshot.world_size,
            "restart_count": snapshot.restart_count,
            "max_restarts": snapshot.max_restarts,
            "workers": [_worker(worker, now) for worker in snapshot.workers],
            "rounds": [_round(entry, ends.get(entry.number), now) for entry in self._journal.rounds()],
            "last_failure": None if failed is None or failed.failure is None else _failure(failed, failed.failure),
        }


def _worker(worker: WorkerSnapshot, now: float) -> dict[str, Any]:
    runs = worker.exit_code is None
    usage = usage_of(worker.pid) if runs else None
    heartbeat_at = worker.heartbeat_at
    return {
        "rank": worker.rank,
        "local_rank": worker.local_rank,
        "pid": worker.pid,
        "state": worker.state,
        "exit_code": worker.exit_code,
        "rounds": worker.rounds,
        "started_at": worker.started_ns / 1e9,
        "seconds_since_heartbeat": None if heartbeat_at is None else round(max(0.0, now - heartbeat_at), 3),
        "cpus": worker.cpus,
        "memory_bytes": usage.memory_bytes if usage is not None else None,
        "processes": usage.processes if usage is not None else 0,
        "stdout": tail_of(worker.stdout, _LOG_LINES) if worker.stdout else None,
        "stderr": tail_of(worker.stderr, _LOG_LINES) if worker.stderr else None,
        "stdout_path": worker.stdout,
        "stderr_path": worker.stderr,
    }


@final
@frozen
class Usage:
    """Resident memory of a process and its descendants (pages that they share count for each), and their number."""

    memory_bytes: int
    processes: int


def usage_of(pid: int) -> Usage | None:
    """Return what a process and its descendants use; ``None`` if it is gone."""
    found = [memory for each in descendants_of(pid) if (memory := resident_bytes(each)) is not None]
    return Usage(sum(found), len(found)) if found else None


def _round(entry: RoundEntry, end: RoundEnd | None, now: float) -> dict[str, Any]:
    until = now if entry.ended_at is None else entry.ended_at
    return {
        "number": entry.number,
        "restart_count": entry.restart_count,
        "group_rank": entry.group_rank,
        "group_world_size": entry.group_world_size,
        "world_size": entry.world_size,
        "asked_at": _wall(entry.asked_at, now),
        "joined_at": _wall(entry.joined_at, now),
        "started_at": None if entry.started_at is None else _wall(entry.started_at, now),
        "ended_at": None if entry.ended_at is None else _wall(entry.ended_at, now),
        "rendezvous_seconds": round(entry.joined_at - entry.asked_at, 6),
        "run_seconds": round(until - entry.joined_at, 6),
        "kept_pids": list(entry.kept),
        "new_pids": list(entry.new),
        "pause_seconds": round(entry.pause_seconds, 6),
        "cause": entry.cause,
        "verdict": entry.verdict,
        "reason": "" if end is None else clean(end.reason, 1000),
    }


def _wall(at: float, now: float) -> float:
    """Return a time of the monotonic clock as seconds since the epoch, by the wall clock of this moment."""
    return round(wall_time_ns() / 1e9 - (now - at), 3)


def _failure(end: RoundEnd, failure: FailureRecord) -> dict[str, Any]:
    code = failure.exit_code
    return {
        "round": end.round_number,
        "rank": failure.rank,
        "local_rank": failure.local_rank,
        "pid": failure.pid,
        "host": failure.host,
        "node_id": failure.node_id,
        "role": failure.role,
        "time": failure.timestamp_ns / 1e9,
        "cause": failure.cause.value,
        "exit_code": code,
        "signal": signal_name(code) if code < 0 else "",
        "message": "\n".join(clean(line, 1000) for line in failure.message.splitlines()[:_LONGEST_MESSAGE_LINES]),
        "traceback": [clean(line) for line in call_stack_of(failure.error_data).splitlines()[-_LONGEST_MESSAGE_LINES:]],
        "stderr": [clean(line) for line in failure.stderr_tail],
        "verdict": end.verdict.value,
        "reason": clean(end.reason, 1000),
    }
