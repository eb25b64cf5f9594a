"""Reports what the agent does while it runs: sentences for people on stderr, events for observers and sinks.

What does not live here: the events' names and fields (:mod:`quorate.events`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import final

from .._interruption import call_interruptibly
from .._isolation import described, raise_if_interrupted
from ..affinity import format_cpus
from ..catalogue import EventSink
from ..clock import monotonic, wall_time_ns
from ..clusters import ClusterJob
from ..errors import UsageError
from ..events import (
    AgentPhaseDetails,
    AgentSignalledDetails,
    ClusterFoundDetails,
    EventDetails,
    NodeDeclinedDetails,
    PreemptionWarnedDetails,
    RendezvousFailedDetails,
    RendezvousWaitingDetails,
    RoundEndedDetails,
    RoundJoinedDetails,
    RoundStandbyDetails,
    WorkerFailedDetails,
    WorkersStartedDetails,
)
from ..failures import signal_name
from ..notices import LONGEST_LINE, write_error
from ..plugins import PluginHost
from ..records import Assignment, Cause, Event, FailureRecord, RendezvousWaiting, RoundEnd, WorkerLaunch
from ..text import printable_lines
from ..verdict import LiveRound
from ._protocol import AnnounceDeadline, Finish, Outcome, Phase
from ._state import Joining, State

_MOST_LIVE_ROUNDS = 100
_LEVELS = {"quiet": 0, "info": 1, "debug": 2}


def level_of(word: str | None) -> int:
    """Return how much is printed at a value of ``QUORATE_LOG``.

    Raises:
        UsageError: the word means nothing.
    """
    level = _LEVELS.get((word or "info").strip().lower())
    if level is None:
        raise UsageError(f"QUORATE_LOG is {word!r}; it must be one of {', '.join(_LEVELS)}")
    return level


def _has_killed(state: State) -> bool:
    """Return whether this node is cut off, and has killed its workers."""
    proposed = None if state.stopping is None else state.stopping.proposed
    return state.phase is Phase.STOPPING and proposed is not None and proposed.cause is Cause.NODE_LOST


@final
class Reporter:
    """Turns changes of the agent's state into sentences and events.

    ``QUORATE_LOG`` is ``quiet``, ``info`` (default: rounds that end, waiting, nothing when all is well) or ``debug``.
    """

    def __init__(self, host: PluginHost, sink: EventSink | None, node_id: str = "") -> None:
        self._host, self._sink, self.node_id = host, sink, node_id
        self._level = level_of(os.environ.get("QUORATE_LOG"))
        self.pids: dict[int, int] = {}
        self.error_files: dict[int, str] = {}
        self.live_rounds: deque[LiveRound] = deque(maxlen=_MOST_LIVE_ROUNDS)
        self._pause_since: float | None = None
        self.listeners: list[Callable[[Event], None]] = []  # the agent's services

    def found(self, job: ClusterJob) -> None:
        """Report the scheduler's job that this agent belongs to."""
        details = ClusterFoundDetails(job.scheduler, job.job_id, job.job_name, job.node_rank)
        self.emit(details, job.sentence or job.title, level=1)

    def changed(self, old: State, new: State) -> None:
        """Report what one step of the agent has changed."""
        if new.assignment is not None and new.assignment is not old.assignment:
            self._joined(new.assignment)
        end = new.history[-1] if (old.phase, new.phase) == (Phase.STOPPING, Phase.CHECKING) else new.end
        if end is not None and end is not old.end:
            # The caller prints the job's own end, which is the result of the run.
            is_result = end.verdict.is_terminal or new.signal_number is not None
            self._ended(end, level=2 if is_result else 1)
        if new.trouble is not None and new.trouble is not old.trouble:
            # While joining it is the error of the run, which the caller prints.
            level = 2 if new.phase is Phase.FINISHED else 1
            self.emit(RendezvousFailedDetails(new.trouble.kind), new.trouble.problem, level=level)
        if new.joining is not None:
            self._waits(old.joining or Joining(), new.joining)
        if new.waiting is not None and new.waiting is not old.waiting:
            self._still_waits(new.waiting)
        if new.signal_number is not None and old.signal_number is None:
            sentence = f"{signal_name(-new.signal_number)} received, leaving the job"
            self.emit(AgentSignalledDetails(new.signal_number), sentence, level=1)
        if new.finish is not None and old.finish is None:
            self._finished(new, new.finish)
        self._interrupted(old, new)
        if new.phase is not old.phase:
            level = 1 if Phase.FROZEN in (new.phase, old.phase) or _has_killed(new) else 2
            self.emit(AgentPhaseDetails(new.phase, old.phase), new.reason, level=level)

    def _interrupted(self, old: State, new: State) -> None:
        """Tell a person at a terminal how long it may take, and how to end it."""
        before = None if old.stopping is None else old.stopping.interrupted_at
        if new.stopping is not None and new.stopping.interrupted_at is not None and before is None:
            seconds = new.settings.grace.preemption
            self.say(
                1, f"the workers have {seconds:g} s to save their work and end; press Ctrl-C again to end them at once"
            )

    def _joined(self, assignment: Assignment) -> None:
        for warning in assignment.warnings:
            self.say(1, f"warning: {warning}")
        if assignment.missing:
            missing = ", ".join(assignment.missing)
            self.say(1, f"in round {assignment.round_number - 1} {missing}: this probably ended the round")
        details = RoundJoinedDetails(
            assignment.round_number,
            assignment.group_rank,
            assignment.group_world_size,
            assignment.world_size,
            assignment.restart_count,
        )
        sentence = (
            f"round {details.round}: group rank {details.group_rank} of {details.group_world_size}, "
            f"world size {details.world_size}, restart {details.restart_count}"
        )
        self.emit(details, sentence, level=2)

    def _ended(self, end: RoundEnd, level: int) -> None:
        details = RoundEndedDetails(end.round_number, end.cause, end.verdict, end.rank, end.host, end.restart_count)
        self.emit(details, f"round {end.round_number} ended ({end.cause} -> {end.verdict}): {end.reason}", level=level)

    def _waits(self, old: Joining, new: Joining) -> None:
        if new.standby_reason != old.standby_reason:
            self.emit(RoundStandbyDetails(), new.standby_reason, level=1)
        if new.peer_declined != old.peer_declined:
            self.emit(NodeDeclinedDetails(), new.peer_declined, level=1)

    def _finished(self, state: State, finish: Finish) -> None:
        """Say so if this node never ran anything: success alone would look like workers that have succeeded."""
        if finish.outcome is Outcome.CLOSED and state.round is None and not state.history and finish.end is not None:
            verdict, reason = finish.end.verdict, finish.end.reason
            self.say(
                1, f"this node ran no workers: the job had ended ({verdict}) before this node was in a round: {reason}"
            )

    def _still_waits(self, report: RendezvousWaiting) -> None:
        details = RendezvousWaitingDetails(
            report.round_number,
            report.waited_seconds,
            report.left_seconds,
            report.nodes,
            report.missing,
            report.hosts,
            report.endpoint,
            report.problem,
        )
        self.emit(details, report.reason, level=1)

    def preempted(self, command: AnnounceDeadline) -> None:
        """Report a warning of the scheduler, and how long the workers have."""
        details = PreemptionWarnedDetails(command.signal_number, command.seconds)
        self.emit(details, f"{command.reason}; the workers have {command.seconds:.0f} s to stop", level=1)

    def stopping(self) -> None:
        """Note that the round has ended for this node's workers."""
        if self._pause_since is None:
            self._pause_since = monotonic()

    def started(
        self,
        pids: Mapping[int, int],
        launches: Sequence[WorkerLaunch],
        kept: Collection[int] = frozenset(),
        round_number: int = 0,
    ) -> None:
        """Report that the workers of a round were started; those of the local ranks ``kept`` have lived on."""
        self.pids = dict(pids)
        self.error_files = {launch.local_rank: launch.error_file for launch in launches}
        cpus = tuple(format_cpus(launch.cpus or ()) for launch in launches)
        pause = 0.0 if self._pause_since is None else monotonic() - self._pause_since
        self._pause_since = None
        lived = tuple(self.pids[local_rank] for local_rank in sorted(kept) if local_rank in self.pids)
        details = WorkersStartedDetails(tuple(self.pids.values()), cpus, lived, round(pause, 6))
        if not lived:
            self.emit(details, f"{len(self.pids)} worker(s) started", level=2)
            return
        new = tuple(pid for local_rank, pid in sorted(self.pids.items()) if local_rank not in kept)
        self.live_rounds.append(LiveRound(round_number, lived, new, details.pause_seconds))
        words = f"{len(lived)} worker(s) live on (pid {', '.join(map(str, lived))})"
        sentence = f"{words}, {len(new)} started; the pause was {pause:.3f} s"
        self.emit(details, sentence, level=1)

    def failed(self, failure: FailureRecord) -> None:
        """Report a worker that failed or hangs, whether it is the cause or a victim."""
        details = WorkerFailedDetails(
            failure.rank, failure.local_rank, failure.pid, failure.cause, failure.exit_code, failure.restart_count
        )
        sentence = f"rank {failure.rank} (local rank {failure.local_rank}): {failure.cause}: {failure.message}"
        self.emit(details, sentence, level=2)

    def say(self, level: int, sentence: str) -> None:
        """Print one sentence for people."""
        if level <= self._level:
            write_error(printable_lines(f"quorate: {sentence}", LONGEST_LINE))

    def emit(self, details: EventDetails, reason: str, *, level: int) -> None:
        """Pass an event to observers and the sink, and its sentence to people if ``level`` is shown."""
        self.say(level, reason)
        if self._sink is None and not self.listeners and not self._host.has_observers():
            return
        event = Event(details.name, reason, self.node_id, wall_time_ns(), details)
        self._host.observe(event)
        for listener in self.listeners:
            listener(event)
        self._write_to_sink(event)

    def _write_to_sink(self, event: Event) -> None:
        """Hand ``event`` to the sink; one that raises is reported once and not called again."""
        sink = self._sink
        if sink is None:
            return
        try:
            call_interruptibly(sink.emit, event)
        except BaseException as error:
            raise_if_interrupted(error)
            self._sink = None
            self.say(1, f"warning: event sink {sink.name!r} raised {described(error)}; it will not be called again")
