"""The vocabulary of the rendezvous machine: its settings, keys, phases, inputs and commands.

What does not live here: its outputs (``_outputs``), what a node knows (:mod:`quorate.rendezvous._state`), what happens
on an input (:mod:`quorate.rendezvous._machine`) and who carries out the commands (:mod:`quorate.rendezvous._driver`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, final

from attrs import field, frozen

from ..cut_off import WhenCutOff
from ..records import NodeRecord, RoundEnd, RoundSummary
from ..timeouts import Timeouts
from ._outputs import (
    CutOff as CutOff,
    JobClosed as JobClosed,
    Left as Left,
    Output as Output,
    PeerDeclined as PeerDeclined,
    Reconnected as Reconnected,
    RendezvousFailed as RendezvousFailed,
    RoundEnded as RoundEnded,
    RoundJoined as RoundJoined,
    StandingBy as StandingBy,
    Waiting as Waiting,
)

# --- settings and keys ----------------------------------------------------------------------------------------------


@final
@frozen
class Settings:
    """How many nodes a round needs and takes at most, and the timeouts (:class:`quorate.timeouts.Timeouts`).

    ``outlives_job`` says that the store is not one that the job's own nodes serve.  A node then keeps its heartbeat up
    until it has left, so that the next job under the same run id can wait for it.

    ``run_id`` is the job's name, and ``endpoint`` is where its store is, for messages.

    ``when_cut_off`` is what becomes of the workers of a node that cannot show any more that it is there.  With
    ``majority`` each round but the first has more than half of the nodes of the round before.
    """

    min_nodes: int
    max_nodes: int
    timeouts: Timeouts = field(factory=Timeouts)
    outlives_job: bool = False
    when_cut_off: WhenCutOff = WhenCutOff.RUN
    majority: bool = False
    run_id: str = ""
    endpoint: str = ""

    @property
    def tracks_cut_off(self) -> bool:
        """Whether a node must know for how long the others count on it.

        The only node of a round too: a standby may take its place.
        """
        return self.when_cut_off is not WhenCutOff.RUN

    @property
    def silence_limit(self) -> float:
        """Seconds after its last heartbeat at which a node is lost."""
        return self.timeouts.silence_limit


_DATA = r"(?:incarnation/[0-9]+/data/)?"
_COUNTER = re.compile(rf"{_DATA}(?:round|[0-9]+/(?:tickets|done|departed))|incarnations")


class Key:
    """Names of the keys of a job; the store keeps jobs apart."""

    ROUND = "round"

    @staticmethod
    def is_counter(key: str) -> bool:
        """Return whether ``key`` is only ever written by ``add``."""
        return _COUNTER.fullmatch(key) is not None

    @staticmethod
    def tickets(n: int) -> str:
        return f"{n}/tickets"

    @staticmethod
    def node(n: int, ticket: int) -> str:
        return f"{n}/node/{ticket}"

    @staticmethod
    def assignment(n: int, sealer: int, ticket: int) -> str:
        return f"{n}/assignment/{sealer}/{ticket}"

    @staticmethod
    def rank_tickets(n: int, sealer: int, part: int) -> str:
        return f"{n}/rank-tickets/{sealer}/{part}"

    @staticmethod
    def sealed(n: int) -> str:
        return f"{n}/sealed"

    @staticmethod
    def ended(n: int) -> str:
        return f"{n}/ended"

    @staticmethod
    def done(n: int) -> str:
        return f"{n}/done"

    @staticmethod
    def here(n: int) -> str:
        return f"{n}/here"

    @staticmethod
    def departed(n: int) -> str:
        return f"{n}/departed"

    @staticmethod
    def empty(n: int) -> str:
        return f"{n}/empty"

    @staticmethod
    def refused(n: int, place: int) -> str:
        return f"{n}/refused/{place}"

    @staticmethod
    def ticket_heartbeat(n: int, ticket: int) -> str:
        return f"{n}/heartbeat/t{ticket}"

    @staticmethod
    def rank_heartbeat(n: int, rank: int) -> str:
        return f"{n}/heartbeat/r{rank}"


# --- phases -----------------------------------------------------------------------------------------------


@final
class Phase(str, Enum):
    """Where one node is in the life of a round."""

    IDLE = "idle"
    LOCATING = "locating"  # finding out which round the job is in
    TICKETING = "ticketing"  # taking a ticket and writing this node's record
    STANDBY = "standby"  # holding a ticket for the next round while a round runs
    GATHERING = "gathering"  # the sealer: collecting nodes until the round may be sealed
    SEALING = "sealing"  # the sealer: writing assignments and committing
    AWAITING = "awaiting"  # every other node: one blocking wait for the seal
    RUNNING = "running"  # a member of a sealed round
    ENDED = "ended"  # the round is over; the agent stops its workers, then joins again or leaves
    CLOSED = "closed"  # the job is over, its reason recorded
    LEFT = "left"  # this node has left the job
    FAILED = "failed"  # this node gave up


#: Phases with a join deadline.
JOINING = frozenset({Phase.LOCATING, Phase.TICKETING, Phase.GATHERING, Phase.SEALING, Phase.AWAITING})
#: The phases without a way out.
FINAL = frozenset({Phase.CLOSED, Phase.LEFT, Phase.FAILED})


# --- inputs ---------------------------------------------------------------------------------------------------------


@final
@frozen
class Join:
    """The agent asks for a place in the next round; none of its workers runs."""

    node: NodeRecord


@final
@frozen
class End:
    """The agent ends the running round; the first end that is recorded wins."""

    end: RoundEnd


@final
@frozen
class Done:
    """All workers of this node have succeeded."""


@final
@frozen
class Leave:
    """The agent leaves the job."""


@final
@frozen
class Reply:
    """The store has answered ``call``."""

    call: Call
    value: Any


@final
@frozen
class Failed:
    """``call`` (``None``: the blocking wait) has failed; ``lost`` if the store is gone for good.

    ``sent_at`` is when a call was sent that got no answer in time, on this node's clock.
    """

    call: Call | None
    problem: str
    lost: bool = False
    sent_at: float | None = None


@final
@frozen
class Appeared:
    """The key that was waited for exists."""

    key: str
    value: bytes


@final
@frozen
class Ordered:
    """The answer of ``decide_ranks``: node ids by group rank, or why no order was decided."""

    order: Sequence[str] = ()
    problem: str = ""


@final
@frozen
class Rescaled:
    """The answer of ``decide_rescale``."""

    worth_it: bool


@final
@frozen
class Tick:
    """Time has passed."""


@final
@frozen
class StopWaiting:
    """A plugin decided that this node does not wait any longer."""

    reason: str


Input = Join | End | Done | Leave | Reply | Failed | Appeared | Ordered | Rescaled | StopWaiting | Tick

# --- commands -------------------------------------------------------------------------------------------------------


@final
class Operation(str, Enum):
    """The store's method that a :class:`Call` uses."""

    ADD = "add"
    CREATE = "create"
    PUT = "put"
    PUT_MANY = "put_many"
    GET = "get"


@final
class Purpose(str, Enum):
    """What a :class:`Call` is for; at most one call of each purpose is pending."""

    # finding the round and getting in line
    ROUND_NUMBER = "round number"  # the hint at which round the job is in
    ROUND_STATE = "round state"  # the seal and the end of that round, and of the one before
    TICKET = "ticket"
    RECORD = "record"  # this node's record, under its ticket
    WHO_IS_HERE = "who is here"  # the sealer's note, for a report
    # standby
    WAITING_COUNT = "waiting count"
    # gathering and sealing
    TICKET_COUNT = "ticket count"
    RECORDS = "records"
    NOTE_WHO_IS_HERE = "note who is here"
    ASSIGNMENTS = "assignments"  # of all members, written by the sealer
    SEAL = "seal"
    ASSIGNMENT = "assignment"  # this node's own, as it was sealed
    # a running round
    DONE_HEARTBEAT = "done heartbeat"
    DONE_COUNT = "done count"
    STANDING = "standing"  # the round's end, after a gap between two heartbeats that have arrived
    DONE_CHECK = "done check"  # the heartbeats of all members, before the job is taken for done
    # a running round, seen by a member or by a standby
    MEMBER_TICKETS = "member tickets"  # of members that have sent no heartbeat of the round
    # every phase
    ROUND_END = "round end"
    NEXT_ROUND_NUMBER = "next round number"  # raises the hint
    HEARTBEAT = "heartbeat"
    HEARTBEATS = "heartbeats"  # of the watched nodes
    LEAVING_HEARTBEAT = "leaving heartbeat"
    WAIT = "wait"  # the blocking wait, which is not a call; names it among what has failed


@final
@frozen
class Call:
    """One store operation: ``ADD`` (key, amount), ``CREATE``/``PUT`` (one item), ``PUT_MANY``, ``GET`` (keys)."""

    purpose: Purpose
    operation: Operation
    keys: tuple[str, ...]
    values: tuple[bytes, ...] = ()
    amount: int = 0


@final
@frozen
class Wait:
    """Wait for ``key`` instead of the key before; ``None``: do not wait."""

    key: str | None


@final
@frozen
class OrderNodes:
    """Ask ``decide_ranks``."""

    nodes: tuple[NodeRecord, ...]
    previous: tuple[str, ...]


@final
@frozen
class AskRescale:
    """Ask ``decide_rescale``."""

    summary: RoundSummary
    waiting: int


Command = Call | Wait | OrderNodes | AskRescale | Output
