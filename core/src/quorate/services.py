"""What lives beside an agent: watchdogs, health servers.  What they see of it, and what they may tell it.

A service sees immutable snapshots and says what it has noticed; the agent alone decides and acts.  What does not live
here: the agent's side of it (:mod:`quorate.agent`), and the records by which plugins offer services
(:mod:`quorate.catalogue`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, final

from attrs import field, frozen
from attrs.validators import ge

from .records import Event, RoundEnd

__all__ = ["AgentService", "AgentSnapshot", "AgentView", "HangReport", "PreparingService", "WorkerSnapshot"]


@final
@frozen
class WorkerSnapshot:
    """One worker of this node, as of the last change.

    ``state`` is ``running``, ``delivered``, ``succeeded``, ``failed`` or ``stopped``; ``exit_code`` is ``None`` while
    its process runs and negative for a signal.  A function's worker has ``delivered`` from when its function has
    returned until its process ends; it waits for the other workers of its node, and nothing more is expected of it.
    ``stdout``, ``stderr`` and ``error_file`` are paths, empty where there is none.
    ``started_ns`` is wall time, for people.  ``heartbeat_at`` is the second of the agent's monotonic clock at which it
    last showed a sign of life, ``None`` where nothing listens for any.
    """

    local_rank: int
    rank: int
    pid: int
    state: str = "running"
    exit_code: int | None = None
    started_ns: int = 0
    stdout: str = ""
    stderr: str = ""
    error_file: str = ""
    heartbeat_at: float | None = None

    @property
    def is_working(self) -> bool:
        """Whether its program still runs."""
        return self.state == "running"


@final
@frozen
class AgentSnapshot:
    """What the agent knew after its last step.

    ``phase`` is ``new``, ``checking``, ``joining``, ``running``, ``barrier``, ``stopping`` or ``finished``; ``reason``
    is the sentence that goes with it.  ``round_number`` and the ranks are ``None`` while the node has no assignment.
    ``workers`` are those of the newest round, ended ones included.  ``ends`` are the rounds that ended so far, oldest
    first, at most a hundred of them.  ``log_dir`` is where logs go, empty where nobody said so.
    """

    run_id: str
    node_id: str
    host: str
    role: str
    phase: str
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

    @property
    def is_running(self) -> bool:
        """Whether this node's workers run in a sealed round."""
        return self.phase == "running"

    def worker_of(self, local_rank: int) -> WorkerSnapshot | None:
        """Return the worker with that local rank, if there is one."""
        return next((worker for worker in self.workers if worker.local_rank == local_rank), None)


@final
@frozen
class HangReport:
    """A worker that makes no progress.

    Arguments:
        local_rank: its rank on this node.
        pid: its process id, so that a report about a worker of an earlier round is told apart.
        problem: a sentence for people.
        scope: what was timed (``step``), empty if nothing had a name.
        overdue_seconds: for how long it has been over its time.
    """

    local_rank: int
    pid: int
    problem: str
    scope: str = ""
    overdue_seconds: float = field(default=0.0, validator=ge(0.0))


class AgentView(Protocol):
    """What a service sees of its agent, and may tell it.  Every method may be called from any thread."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The agent's environment."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What flags of plugins have set (``CliOption.apply``), and callers of the API (``LaunchConfig.settings``)."""
        ...

    def snapshot(self) -> AgentSnapshot:
        """Return what the agent knew after its last step; never blocks."""
        ...

    def turn(self, timeout: float) -> float | None:
        """Return the seconds that the agent's thread took to answer, ``None`` if it did not within ``timeout``."""
        ...

    def store_latency(self, timeout: float) -> float | None:
        """Return the seconds that one read of the rendezvous store took; ``None`` where there is no store to ask yet.

        Raises:
            StoreUnavailableError: no answer within ``timeout`` seconds.
        """
        ...

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        """Note that this worker has just shown a sign of life; costs a dictionary's write, so it may come often.

        ``pid`` keeps a late sign from an earlier round's worker apart.
        """
        ...

    def report_hang(self, report: HangReport) -> None:
        """Say that a worker hangs: the agent has all workers dump their stacks, then ends the round."""
        ...

    def report_unhealthy(self, problem: str) -> None:
        """Say that this node should not go on: the agent ends the round and leaves the job; the others go on."""
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
        """Be told what happened (``docs/events.md``); on the agent's thread, so it must not block."""
        ...

    def close(self) -> None:
        """Stop, and release every descriptor, thread and file; called once, on the agent's thread."""
        ...


class PreparingService(AgentService, Protocol):
    """An ability that a service may have besides: using the time in which its node waits for others."""

    def get_ready(self) -> None:
        """Load what the first workers will make necessary; on the agent's thread, for some ten milliseconds at most.

        Called once at most, and not at all where the node need not wait: :meth:`observe` does without it.
        """
        ...
