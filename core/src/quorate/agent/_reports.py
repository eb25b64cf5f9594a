"""What the agent says while it runs: sentences for people on stderr, events for observers and sinks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from ..clock import wall_time_ns
from ..failures import signal_name
from ..records import Event, FailureRecord, WorkerLaunch
from ._protocol import Phase, State

if TYPE_CHECKING:
    from ..catalogue import EventSink
    from ..plugins import PluginHost

__all__ = ["Reporter"]

_LEVELS = {"quiet": 0, "info": 1, "debug": 2}


@final
class Reporter:
    """Turns changes of the agent's state into sentences and events.

    ``QUORATE_LOG`` is ``quiet``, ``info`` (default: rounds that end, waiting, nothing when all is well) or ``debug``.
    """

    def __init__(self, host: PluginHost, sink: EventSink | None, node_id: str = "") -> None:
        self._host, self._sink, self.node_id = host, sink, node_id
        self._level = _LEVELS.get(os.environ.get("QUORATE_LOG", "info").lower(), 1)
        self.pids: dict[int, int] = {}
        self.error_files: dict[int, str] = {}
        self.listeners: list[Callable[[Event], None]] = []  # told besides plugins' observers

    def changed(self, old: State, new: State) -> None:
        """Told after each step of the agent."""
        if new.assignment is not None and new.assignment is not old.assignment:
            assignment = new.assignment
            for warning in assignment.warnings:
                self.say(1, f"warning: {warning}")
            if assignment.missing:
                self.say(
                    1, f"in round {assignment.round_number - 1} {', '.join(assignment.missing)}: probably why it ended"
                )
            self.emit(
                "round.joined",
                f"round {assignment.round_number}: group rank {assignment.group_rank} of {assignment.group_world_size}, "
                f"world size {assignment.world_size}, restart {assignment.restart_count}",
                round=assignment.round_number,
                group_rank=assignment.group_rank,
                group_world_size=assignment.group_world_size,
                world_size=assignment.world_size,
                restart_count=assignment.restart_count,
                level=2,
            )
        end = new.end or new.last_end
        if end is not None and end is not old.end and end is not old.last_end:
            self.emit(
                "round.ended",
                f"round {end.round_number} ended ({end.cause.value} -> {end.verdict.value}): {end.reason}",
                round=end.round_number,
                cause=end.cause.value,
                verdict=end.verdict.value,
                rank=end.rank,
                host=end.host,
                restart_count=end.restart_count,
                # The job's own end is the run's result, which whoever called prints.
                level=2 if end.verdict.is_terminal or new.signal_number is not None else 1,
            )
        if new.trouble is not None and new.trouble is not old.trouble:
            # While joining it is the run's error, which whoever called prints.
            level = 2 if new.phase is Phase.FINISHED else 1
            self.emit("rendezvous.failed", new.trouble.problem, kind=new.trouble.kind.value, level=level)
        if new.stood_by and new.reason != old.reason and new.phase is Phase.JOINING:
            self.emit("round.standby", new.reason, level=1)
        if new.peer_declined != old.peer_declined:
            self.emit("node.absent", new.peer_declined, level=1)
        if new.signal_number is not None and old.signal_number is None:
            name = signal_name(-new.signal_number)
            self.emit("agent.signalled", f"{name} received, leaving the job", signal=new.signal_number, level=1)
        if new.phase is not old.phase:
            self.emit("agent.phase", new.reason, phase=new.phase.value, was=old.phase.value, level=2)

    def started(self, pids: Mapping[int, int], launches: Sequence[WorkerLaunch]) -> None:
        """Told when workers were started."""
        self.pids = dict(pids)
        self.error_files = {launch.local_rank: launch.error_file for launch in launches}
        self.emit("workers.started", f"{len(self.pids)} worker(s) started", pids=list(self.pids.values()), level=2)

    def failed(self, failure: FailureRecord) -> None:
        """Told of each worker that failed or hangs, causes and victims alike."""
        self.emit(
            "worker.failed",
            f"rank {failure.rank} (local rank {failure.local_rank}): {failure.cause.value}: {failure.message}",
            rank=failure.rank,
            local_rank=failure.local_rank,
            pid=failure.pid,
            cause=failure.cause.value,
            exit_code=failure.exit_code,
            restart_count=failure.restart_count,
            level=2,
        )

    def say(self, level: int, sentence: str) -> None:
        """Print one sentence for people."""
        if level <= self._level:
            try:
                sys.stderr.write(f"quorate: {sentence}\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                pass  # a closed stderr is no reason to stop

    def emit(self, name: str, reason: str, *, level: int, **details: Any) -> None:
        """Tell observers, the sink and, at ``level``, people."""
        self.say(level, reason)
        if self._sink is None and not self.listeners and not self._host.has_observers():
            return
        event = Event(name, reason, self.node_id, wall_time_ns(), details)
        self._host.observe(event)
        for listener in self.listeners:
            listener(event)
        if self._sink is not None:
            self._sink.emit(event)
