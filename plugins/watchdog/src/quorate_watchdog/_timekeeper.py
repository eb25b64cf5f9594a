"""Keeps the workers' timers: reads what workers write, and reports those whose timers end.

What does not live here: the thread and its waiting (:mod:`._server`), what lines mean (:mod:`._messages`), silence
(:mod:`._silence`), and what is done about a hung worker (the agent).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import final

from quorate.clock import monotonic, wall_time_ns
from quorate.proc import ancestor_among, start_time_of
from quorate.services import AgentSnapshot, AgentView, HangReport, WorkerSnapshot

from ._messages import Lines, Message, parse
from ._timers import Timer, TimerKey, Timers

_CHUNK_BYTES = 1 << 16
#: How much is read before the timers are looked at: more than any pipe holds.
_CHUNKS = 64
#: Waking later than this means that the agent was suspended.  Timers are prolonged by that time, and by a grace in
#: which workers that found the pipe full can write the rest.
_LATE_SECONDS, _GRACE_SECONDS = 1.0, 5.0
#: After so many late wake-ups in a row the agent is slow, and not suspended: it judges, or would never report a hang.
_MOST_LATE = 3
_MOST_TIMERS = 100_000
_HEARTBEAT = "heartbeat"


@final
class Timekeeper:
    """The timers of one agent's workers; used by one thread, but for :meth:`freeze` and :meth:`thaw`.

    Arguments:
        agent: receives heartbeats and reports of hung workers.
        readers: the descriptors that workers' messages are read from, non-blocking.
        heartbeat_timeout: seconds after a heartbeat within which the next one must come, 0 for any time.
    """

    def __init__(self, agent: AgentView, readers: Sequence[int], heartbeat_timeout: float = 0.0) -> None:
        self.timers = Timers()
        self._agent, self._heartbeat_timeout = agent, heartbeat_timeout
        self._namespace = _namespace()
        self._lines = {reader: Lines() for reader in readers}
        # Both are kept for one batch of messages: when processes started, and what the agent knew.
        self._start_times: dict[int, int | None] = {}
        self._seen: AgentSnapshot | None = None
        self._has_warned: set[str] = set()
        self._changing = threading.Lock()
        self._frozen_at: float | None = None
        self._owed_seconds = 0.0
        self._late_count = 0

    def next_deadline(self) -> float | None:
        """Return when the next timer ends, on the monotonic clock; ``None`` if none runs."""
        return None if self._frozen_at is not None else self.timers.next_deadline()

    def freeze(self) -> None:
        """The workers stand still from now on; as :meth:`thaw`, called on the agent's thread."""
        with self._changing:
            if self._frozen_at is None:
                self._frozen_at = monotonic()

    def thaw(self) -> bool:
        """Give every timer the time for which the workers stood still; return whether they did."""
        with self._changing:
            if self._frozen_at is None:
                return False
            self._owed_seconds += monotonic() - self._frozen_at + _GRACE_SECONDS
            self._frozen_at = None
            return True

    def take(self, ready: Sequence[int], deadline: float | None) -> None:
        """Read what is in ``ready``, then judge the timers; ``deadline`` is when it was due at the latest."""
        now = monotonic()
        with self._changing:
            owed, self._owed_seconds = self._owed_seconds, 0.0
        if owed:
            self.timers.prolong_all(owed)
        elif deadline is not None and now > deadline + _LATE_SECONDS and self._late_count < _MOST_LATE:
            self._late_count += 1
            self.timers.prolong_all(now - deadline + _GRACE_SECONDS)
        elif deadline is not None and now >= deadline:
            self._late_count = 0
        self._start_times.clear()
        self._seen = None
        # Read before judging: the release of a timer may be in the pipe since before its deadline.
        for descriptor in ready:
            self._read(descriptor)
        if self._frozen_at is None and not self._owed_seconds:
            self._judge()

    def _read(self, descriptor: int) -> None:
        for _ in range(_CHUNKS):
            try:
                data = os.read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                return
            for line in self._lines[descriptor].feed(data):
                message = parse(line)
                if message is not None:
                    self._take(message)
                elif line.strip():
                    self._warn_once("a line that is not a message was written to the workers' timer pipe; ignored")

    def _take(self, message: Message) -> None:
        is_foreign = message.namespace not in (0, self._namespace)
        if message.timer is None:
            self._take_heartbeat(message, is_foreign)
            return
        key = TimerKey(message.pid, None if is_foreign else self._start_time_of(message.pid), message.timer)
        if message.seconds < 0.0:
            self.timers.release(key)
            return
        if key.started_at is None and not is_foreign:
            return  # it has ended
        if len(self.timers) >= _MOST_TIMERS and not self._make_room():
            self._warn_once(f"workers have more than {_MOST_TIMERS} timers; further ones are not watched")
            return
        now = monotonic()
        # Wall clocks of one machine agree, so the time that is left can be taken from the writer's.
        after = message.seconds - (wall_time_ns() / 1e9 if message.is_wall else 0.0)
        rank, round_number = self._place_of(message)
        timer = Timer(now + max(0.0, after), after, message.scope, message.is_fatal, is_foreign, rank, round_number)
        self.timers.set(key, timer)

    def _take_heartbeat(self, message: Message, is_foreign: bool) -> None:
        now = monotonic()
        worker = self._worker_of(self._snapshot(), message.pid, is_foreign, *self._place_of(message))
        if worker is None:
            return
        self._agent.note_heartbeat(worker.local_rank, worker.pid)
        if self._heartbeat_timeout > 0.0:
            key = TimerKey(worker.pid, self._start_time_of(worker.pid), None)
            self.timers.set(key, Timer(now + self._heartbeat_timeout, self._heartbeat_timeout, _HEARTBEAT))

    def _snapshot(self) -> AgentSnapshot:
        if self._seen is None:
            self._seen = self._agent.snapshot()
        return self._seen

    def _start_time_of(self, pid: int) -> int | None:
        if pid not in self._start_times:
            self._start_times[pid] = start_time_of(pid)
        return self._start_times[pid]

    def _place_of(self, message: Message) -> tuple[int, int]:
        """Return global rank and round of the worker of this agent that wrote a message, else ``(-1, -1)``."""
        is_ours = message.agent and message.agent == self._snapshot().node_id
        return (message.rank, message.round_number) if is_ours else (-1, -1)

    def _make_room(self) -> bool:
        """Release the timers of processes that have ended; return whether there were any."""
        now = {pid: start_time_of(pid) for pid in {key.pid for key in self.timers if key.started_at is not None}}
        ended = [key for key in self.timers if key.started_at is not None and now[key.pid] != key.started_at]
        for key in ended:
            self.timers.release(key)
        return bool(ended)

    # --- judging --------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        now = monotonic()
        for key, timer in self.timers.pop_expired(now):
            if key.started_at is not None and start_time_of(key.pid) != key.started_at:
                continue  # its process has ended, whatever has the number now
            worker = self._worker_of(self._agent.snapshot(), key.pid, timer.is_foreign, timer.rank, timer.round_number)
            if worker is None:
                continue
            problem = _problem(key, timer, worker, now)
            if timer.is_fatal:
                self._agent.report_hang(
                    HangReport(worker.local_rank, worker.pid, problem, timer.scope, max(0.0, now - timer.deadline))
                )
            else:
                self._agent.say(
                    f"rank {worker.rank} (local rank {worker.local_rank}): {problem}; it asked for a message only"
                )

    def _worker_of(
        self, snapshot: AgentSnapshot, pid: int, is_foreign: bool, rank: int, round_number: int
    ) -> WorkerSnapshot | None:
        """Return the running worker that a process is, or descends from; a foreign one is known by rank and round."""
        running = {worker.pid: worker for worker in snapshot.workers if worker.is_working}
        if not is_foreign:
            owner = ancestor_among(pid, running)
            return None if owner is None else running[owner]
        if snapshot.round_number != round_number:
            return None
        return next((worker for worker in running.values() if worker.rank == rank), None)

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._has_warned:
            self._has_warned.add(sentence)
            self._agent.say(f"warning: {sentence}")


def _problem(key: TimerKey, timer: Timer, worker: WorkerSnapshot, now: float) -> str:
    overdue = max(0.0, now - timer.deadline)
    if key.name is None:
        return f"no heartbeat for {timer.after + overdue:.1f} s, {overdue:.1f} s more than --heartbeat-timeout"
    where = "" if key.pid == worker.pid or timer.is_foreign else f" of its process {key.pid}"
    return f"scope {timer.scope!r}{where} is {overdue:.1f} s over its {timer.after:.1f} s"


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
