"""Services run beside an agent: watchdogs, health servers.  Here is what they see of the agent and may report to it.

A service sees immutable snapshots and reports what it noticed; only the agent decides and acts.  What does not live
here: the agent's side (:mod:`quorate.agent`), and the records by which plugins offer services
(:mod:`quorate.catalogue`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

from attrs import field, frozen
from attrs.validators import ge, instance_of

from .clusters import ClusterJob
from .records import AgentPhase, Event, RoundEnd, WorkerStatus

__all__ = ["AgentService", "AgentSnapshot", "AgentView", "HangReport", "PreparingService", "WorkerSnapshot"]


@final
@frozen
class WorkerSnapshot:
    """One worker of this node, as of the last change.

    ``exit_code`` is ``None`` while its process runs and negative for a signal.  ``stdout``, ``stderr`` and
    ``error_file`` are paths, empty where the worker has no such file.  ``started_ns`` is wall time, for people.
    ``heartbeat_at`` is the time of its last heartbeat, in seconds of the agent's monotonic clock; ``None`` where no
    service receives heartbeats.  ``cpus`` are those that it was bound to when it started, as the kernel writes lists
    (``0-3,8``), empty if it was not bound.  ``rounds`` is the number of rounds that its process has been in, more than
    1 for a worker that has lived on.
    """

    local_rank: int
    rank: int
    pid: int
    state: WorkerStatus = field(default=WorkerStatus.RUNNING, converter=WorkerStatus)
    exit_code: int | None = None
    started_ns: int = 0
    stdout: str = ""
    stderr: str = ""
    error_file: str = ""
    heartbeat_at: float | None = None
    cpus: str = ""
    rounds: int = 1

    @property
    def is_working(self) -> bool:
        """Whether its program still runs."""
        return self.exit_code is None and self.state is WorkerStatus.RUNNING


@final
@frozen
class AgentSnapshot:
    """What the agent knew after its last step.

    ``reason`` is the sentence that goes with the phase.  ``round_number`` and the ranks are ``None`` while the node has
    no assignment.  ``workers`` are those of the newest round, ended ones included.  ``ends`` are the rounds that ended
    so far, oldest first, at most a hundred of them.  ``log_dir`` is where logs go, empty where it is not set.
    ``cluster`` is the scheduler's job, if there is one.
    """

    run_id: str
    node_id: str
    host: str
    role: str
    phase: AgentPhase = field(converter=AgentPhase)
    reason: str
    max_restarts: int
    restart_count: int = 0
    round_number: int | None = None
    group_rank: int | None = None
    group_world_size: int | None = None
    world_size: int | None = None
    workers: tuple[WorkerSnapshot, ...] = ()
    ends: tuple[RoundEnd, ...] = ()
    log_dir: str = ""
    cluster: ClusterJob | None = None

    @property
    def is_running(self) -> bool:
        """Whether this node's workers run in a sealed round."""
        return self.phase is AgentPhase.RUNNING


@final
@frozen
class HangReport:
    """A worker that makes no progress.

    Arguments:
        local_rank: its rank on this node.
        pid: its process id, which tells it from a worker of an earlier round.
        problem: a sentence for people.
        scope: the name of what was timed (``step``), empty if it has none.
        overdue_seconds: how long its time has been over.
    """

    local_rank: int = field(validator=[instance_of(int), ge(0)])
    pid: int = field(validator=[instance_of(int), ge(1)])
    problem: str = field(validator=instance_of(str))
    scope: str = field(default="", validator=instance_of(str))
    overdue_seconds: float = field(default=0.0, validator=ge(0.0))


class AgentView(Protocol):
    """What a service sees of its agent, and may report to it.  Every method may be called from any thread."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The agent's environment."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What plugins' flags (``CliOption.apply``) and callers of the API (``LaunchConfig.settings``) have set."""
        ...

    def snapshot(self) -> AgentSnapshot:
        """Return what the agent knew after its last step; never blocks."""
        ...

    def turn(self, timeout: float) -> float | None:
        """Return the seconds that the agent's thread took to answer, ``None`` if it took longer than ``timeout``."""
        ...

    def store_latency(self, timeout: float) -> float | None:
        """Return the seconds that one read of the rendezvous store took; ``None`` as long as no store is open.

        Raises:
            StoreUnavailableError: no answer within ``timeout`` seconds.
        """
        ...

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        """Note a heartbeat of this worker.  It costs one write to a dictionary, so it may be called often.

        ``pid`` tells the worker from one of an earlier round, whose heartbeat may be late.
        """
        ...

    def report_hang(self, report: HangReport) -> None:
        """Report that a worker hangs: the agent has all workers dump their stacks, then ends the round."""
        ...

    def report_unhealthy(self, problem: str) -> None:
        """Report that this node should not go on: the agent ends the round and leaves the job; the others go on.

        Raises:
            TypeError: ``problem`` is not a text.
        """
        ...

    def report_preemption(self, seconds_left: float, reason: str) -> None:
        """Report that this node will be taken in ``seconds_left``, as a cloud's notice says.

        The workers of all nodes are told, and save what they have.  This node leaves; the others go on if they are
        enough.

        Raises:
            TypeError: ``reason`` is not a text, or ``seconds_left`` is not a number.
            ValueError: ``seconds_left`` is negative or not finite.
        """
        ...

    def say(self, sentence: str) -> None:
        """Print one sentence for people, as the agent itself does."""
        ...


class AgentService(Protocol):
    """A running service, for as long as the agent runs."""

    @property
    def worker_environment(self) -> Mapping[str, str]:
        """Variables that every worker gets: unless they are set already, or always if they begin with ``QUORATE_``."""
        ...

    def observe(self, event: Event) -> None:
        """Receive an event (``docs/events.md``); on the agent's thread, so it must not block."""
        ...

    def close(self) -> None:
        """Stop, and release every descriptor, thread and file; called once, on the agent's thread."""
        ...


@runtime_checkable
class PreparingService(AgentService, Protocol):
    """A further ability of a service: to use the time in which its node waits for others."""

    def get_ready(self) -> None:
        """Load what the first workers will make necessary; on the agent's thread, for some ten milliseconds at most.

        Called once at most, and not at all where the node need not wait: :meth:`observe` must do without it.
        """
        ...
