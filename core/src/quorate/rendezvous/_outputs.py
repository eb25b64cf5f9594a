"""What the rendezvous tells the agent of its node: the outputs of one machine, and inputs of the other.

They stand in a module of their own, which a job without a store loads without the protocol.  What does not live here:
when they are sent (:mod:`quorate.rendezvous._machine`), and what they lead to (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

from typing import final

from attrs import frozen

from ..errors import FailureKind
from ..records import Assignment, RendezvousWaiting, RoundEnd


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
    """A round is full or running; this node is in line for the next one."""

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
class Reconnected:
    """After :class:`CutOff`: the store answers again, and the round still runs with this node in it."""


@final
@frozen
class RendezvousFailed:
    """The rendezvous cannot go on.

    The members of the round ``told_round``, which runs, are told why, too; ``None``: this is nothing to them.
    """

    kind: FailureKind
    problem: str
    told_round: int | None = None


@final
@frozen
class Left:
    """To the driver, and not to the agent: this node has left."""


Output = (
    RoundJoined
    | PeerDeclined
    | StandingBy
    | Waiting
    | RoundEnded
    | JobClosed
    | CutOff
    | Reconnected
    | RendezvousFailed
    | Left
)
