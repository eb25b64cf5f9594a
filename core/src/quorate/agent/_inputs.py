"""The inputs of the agent machine: what its runner tells it.

What does not live here: what they lead to (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

from typing import final

from attrs import frozen

from ..errors import FailureKind
from ..records import Assignment, FailureRecord, RendezvousWaiting, RestartDecision, RoundEnd, WorkerExited

__all__ = [
    "Begin",
    "CannotFreeze",
    "Clock",
    "CutOff",
    "Diagnosed",
    "Input",
    "JobClosed",
    "NodeChecked",
    "NodeUnhealthy",
    "PeerDeclined",
    "PreemptionWarned",
    "Reconnected",
    "RendezvousFailed",
    "RoundEnded",
    "RoundJoined",
    "SignalReceived",
    "StacksDumped",
    "StandingBy",
    "StartFailed",
    "Waiting",
    "WorkerHung",
    "WorkersExited",
    "WorkersGone",
]


@final
@frozen
class Begin:
    """Run."""


@final
@frozen
class NodeChecked:
    """The checks of this node are over; ``problems`` are sentences, none if the node is healthy."""

    problems: tuple[str, ...] = ()


@final
@frozen
class NodeUnhealthy:
    """A check, a service or a leftover process shows that this node should not go on."""

    problem: str


@final
@frozen
class RoundJoined:
    """A round is sealed with this node in it."""

    assignment: Assignment


@final
@frozen
class PeerDeclined:
    """Another node said why it does not join the round that this node gathers."""

    reason: str


@final
@frozen
class StandingBy:
    """This node is in line for the next round."""

    reason: str


@final
@frozen
class Waiting:
    """This node has waited for other nodes, or for the store, for some time, and goes on."""

    report: RendezvousWaiting


@final
@frozen
class RoundEnded:
    """The round's end was recorded, and another round follows."""

    end: RoundEnd


@final
@frozen
class JobClosed:
    """The job's end was recorded."""

    end: RoundEnd


@final
@frozen
class CutOff:
    """The other nodes may go on without this one; ``reason`` says since when the store has not answered."""

    reason: str


@final
@frozen
class CannotFreeze:
    """The answer to :class:`FreezeWorkers` where the workers cannot be made to stand still."""

    problem: str


@final
@frozen
class Reconnected:
    """The store answers again, and the round still runs with this node in it."""


@final
@frozen
class RendezvousFailed:
    """The rendezvous cannot go on."""

    kind: FailureKind
    problem: str


@final
@frozen
class WorkerHung:
    """A worker makes no progress."""

    local_rank: int
    pid: int
    problem: str
    timestamp_ns: int = 0


@final
@frozen
class StacksDumped:
    """The workers have written their stacks, as far as they could; ``lines`` are the end of the hung worker's."""

    lines: tuple[str, ...] = ()


@final
@frozen
class WorkersExited:
    """Workers have ended."""

    exits: tuple[WorkerExited, ...]


@final
@frozen
class StartFailed:
    """The workers could not be started; none of them runs."""

    exit: WorkerExited


@final
@frozen
class Diagnosed:
    """The answer to :class:`Diagnose` and :class:`Decide`."""

    failure: FailureRecord
    decision: RestartDecision | None


@final
@frozen
class WorkersGone:
    """All workers and everything they started have ended, but for ``kept``: live workers that have left their world.

    ``kept`` are local ranks.
    """

    kept: frozenset[int] = frozenset()


@final
@frozen
class SignalReceived:
    """The agent was signalled.  ``is_person``: by a person at its terminal, who pressed Ctrl-C."""

    number: int
    is_person: bool = False


@final
@frozen
class PreemptionWarned:
    """The scheduler, or a service, has announced that this node or the whole job ends soon.

    ``grace_seconds`` is what is left to the workers, ``None`` where it is not known.  ``min_nodes`` is how many nodes
    the job needs, 0 where that is not known.
    """

    number: int
    grace_seconds: float | None
    reason: str
    whole_job: bool = False
    min_nodes: int = 0


@final
@frozen
class Clock:
    """Time has passed; ``due`` if the state's ``wake_at`` was reached."""

    due: bool = False


Input = (
    Begin
    | NodeChecked
    | NodeUnhealthy
    | RoundJoined
    | StandingBy
    | PeerDeclined
    | Waiting
    | RoundEnded
    | JobClosed
    | CutOff
    | CannotFreeze
    | Reconnected
    | RendezvousFailed
    | WorkerHung
    | StacksDumped
    | WorkersExited
    | StartFailed
    | Diagnosed
    | WorkersGone
    | SignalReceived
    | PreemptionWarned
    | Clock
)
