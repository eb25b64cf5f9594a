"""The events of an agent: their names, and the details that each carries.

:class:`EventName` is the whole list; ``docs/events.md`` is generated from it.  What does not live here: when events are
sent (:mod:`quorate.agent`), and the envelope that all of them share (:class:`quorate.records.Event`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, final

from attrs import fields, frozen

from .errors import FailureKind
from .records import AgentPhase, Cause, TextEnum, Verdict

__all__ = [
    "AgentPhaseDetails",
    "AgentSignalledDetails",
    "ClusterFoundDetails",
    "EventDetails",
    "EventName",
    "NodeDeclinedDetails",
    "PreemptionWarnedDetails",
    "RendezvousFailedDetails",
    "RendezvousWaitingDetails",
    "RoundEndedDetails",
    "RoundJoinedDetails",
    "RoundStandbyDetails",
    "WorkerFailedDetails",
    "WorkersStartedDetails",
]


@final
class EventName(TextEnum):
    """Every event; :attr:`details` is the class of its details."""

    CLUSTER_FOUND = "cluster.found"
    AGENT_PHASE = "agent.phase"
    AGENT_SIGNALLED = "agent.signalled"
    NODE_DECLINED = "node.declined"
    PREEMPTION_WARNED = "preemption.warned"
    RENDEZVOUS_FAILED = "rendezvous.failed"
    RENDEZVOUS_WAITING = "rendezvous.waiting"
    ROUND_STANDBY = "round.standby"
    ROUND_JOINED = "round.joined"
    ROUND_ENDED = "round.ended"
    WORKERS_STARTED = "workers.started"
    WORKER_FAILED = "worker.failed"

    @property
    def details(self) -> type[EventDetails]:
        """The class of the event's details; its docstring says when the event happens."""
        return _DETAILS[self]


class EventDetails(Mapping[str, Any]):
    """Base of the details: typed fields, which can also be read as a mapping of their names."""

    __slots__ = ()
    name: ClassVar[EventName]

    def __getitem__(self, key: str) -> Any:
        if key not in tuple(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        own: Any = type(self)
        return (attribute.name for attribute in fields(own))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@final
@frozen
class ClusterFoundDetails(EventDetails):
    """A cluster's scheduler has started the agent; once, before the agent joins (see [clusters](clusters.md))."""

    name = EventName.CLUSTER_FOUND
    scheduler: str
    job_id: str
    job_name: str
    node_rank: int | None


@final
@frozen
class AgentPhaseDetails(EventDetails):
    """The agent enters another phase (see [architecture](architecture.md))."""

    name = EventName.AGENT_PHASE
    phase: AgentPhase
    was: AgentPhase


@final
@frozen
class AgentSignalledDetails(EventDetails):
    """The agent received a signal."""

    name = EventName.AGENT_SIGNALLED
    signal: int


@final
@frozen
class PreemptionWarnedDetails(EventDetails):
    """The scheduler will end the job or take a node, and this node's workers are asked to stop."""

    name = EventName.PREEMPTION_WARNED
    signal: int
    grace_seconds: float


@final
@frozen
class NodeDeclinedDetails(EventDetails):
    """Another node says why it does not join; the node that gathers the round receives this event."""

    name = EventName.NODE_DECLINED


@final
@frozen
class RendezvousFailedDetails(EventDetails):
    """The rendezvous cannot go on."""

    name = EventName.RENDEZVOUS_FAILED
    kind: FailureKind


@final
@frozen
class RendezvousWaitingDetails(EventDetails):
    """This node has waited for other nodes, or for the store, for some seconds; sent again at growing intervals.

    After ``left_seconds`` the node gives up (``null``: never).  ``nodes`` have joined, and ``missing`` are needed for
    the minimum (0 if this is not known).  ``hosts`` are the first of the nodes that have joined.  ``problem`` is why
    the last attempt to reach the store failed.
    """

    name = EventName.RENDEZVOUS_WAITING
    round: int
    waited_seconds: float
    left_seconds: float | None
    nodes: int
    missing: int
    hosts: tuple[str, ...]
    endpoint: str
    problem: str


@final
@frozen
class RoundStandbyDetails(EventDetails):
    """A round is running or full; this node is in line for the next one."""

    name = EventName.ROUND_STANDBY


@final
@frozen
class RoundJoinedDetails(EventDetails):
    """This node has its place in a sealed round."""

    name = EventName.ROUND_JOINED
    round: int
    group_rank: int
    group_world_size: int
    world_size: int
    restart_count: int


@final
@frozen
class RoundEndedDetails(EventDetails):
    """The round's end was recorded, by this node or another one."""

    name = EventName.ROUND_ENDED
    round: int
    cause: Cause
    verdict: Verdict
    rank: int | None
    host: str
    restart_count: int


@final
@frozen
class WorkersStartedDetails(EventDetails):
    """The workers of this node were started.

    ``cpus`` has the CPUs of each worker, as ``0-3,8``, empty for a worker that is not bound.  ``kept`` has the pids of
    live workers from the round before.  ``pause_seconds`` is the time since that round ended for this node's workers.
    """

    name = EventName.WORKERS_STARTED
    pids: tuple[int, ...]
    cpus: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()
    pause_seconds: float = 0.0


@final
@frozen
class WorkerFailedDetails(EventDetails):
    """A worker of this node failed or hangs; workers that failed after they were asked to stop do not count."""

    name = EventName.WORKER_FAILED
    rank: int
    local_rank: int
    pid: int
    cause: Cause
    exit_code: int
    restart_count: int


_DETAILS: Mapping[EventName, type[EventDetails]] = {
    value.name: value
    for value in tuple(globals().values())
    if isinstance(value, type) and issubclass(value, EventDetails) and value is not EventDetails
}
