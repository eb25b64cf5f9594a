"""The vocabulary of the rendezvous machine: its settings, keys, phases, state, inputs, commands and outputs.

What happens with them is in :mod:`quorate.rendezvous._machine`; who carries the commands out, in ``_driver``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, final

from attrs import field, frozen

from ..errors import FailureKind
from ..records import Assignment, NodeRecord, RoundEnd, RoundSummary
from ._liveness import Liveness

# --- settings and keys ----------------------------------------------------------------------------------------------


@final
@frozen
class Settings:
    """Bounds and deadlines (seconds).  ``docs/timeouts.md`` tells what each is for."""

    min_nodes: int
    max_nodes: int
    join_timeout: float = 600.0
    last_call_timeout: float = 5.0
    lease_timeout: float = 3.0
    store_outage_timeout: float = 300.0
    settle_timeout: float = 0.1

    @property
    def heartbeat_interval(self) -> float:
        return self.lease_timeout / 4

    @property
    def patience(self) -> float:
        """How long a counter may stand still: the lease, less the time until I look."""
        return self.lease_timeout - self.heartbeat_interval


class Key:
    """Names of the keys of a job; the store keeps jobs apart."""

    ROUND = "round"

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
    def sealed(n: int) -> str:
        return f"{n}/sealed"

    @staticmethod
    def ended(n: int) -> str:
        return f"{n}/ended"

    @staticmethod
    def done(n: int) -> str:
        return f"{n}/done"

    @staticmethod
    def departed(n: int) -> str:
        return f"{n}/departed"

    @staticmethod
    def empty(n: int) -> str:
        return f"{n}/empty"

    @staticmethod
    def ticket_beat(n: int, ticket: int) -> str:
        return f"{n}/beat/t{ticket}"

    @staticmethod
    def rank_beat(n: int, rank: int) -> str:
        return f"{n}/beat/r{rank}"


# --- phases and state -----------------------------------------------------------------------------------------------


@final
class Phase(str, Enum):
    """Where one node is in the life of a round."""

    IDLE = "idle"
    LOCATING = "locating"  # finding out which round the job is in
    TICKETING = "ticketing"  # taking a ticket and writing this node's record
    STANDBY = "standby"  # holding a ticket for the next round while another one runs
    GATHERING = "gathering"  # the sealer: collecting nodes until the round may be sealed
    SEALING = "sealing"  # the sealer: writing assignments and committing
    AWAITING = "awaiting"  # everyone else: one blocking wait for the seal
    RUNNING = "running"  # a member of a sealed round
    ENDED = "ended"  # the round is over; the agent stops its workers, then joins again or leaves
    CLOSED = "closed"  # the job is over, its reason recorded
    LEFT = "left"  # this node went away
    FAILED = "failed"  # this node gave up


#: Phases with a join deadline.
JOINING = frozenset({Phase.LOCATING, Phase.TICKETING, Phase.GATHERING, Phase.SEALING, Phase.AWAITING})
#: Phases in which nothing happens any more.
FINAL = frozenset({Phase.CLOSED, Phase.LEFT, Phase.FAILED})


@final
@frozen
class Previous:
    """The round before the one being joined: how it was sealed, and how it ended (``None``: it still runs)."""

    summary: RoundSummary
    ended: RoundEnd | None = None


@final
@frozen(slots=False)  # each step of the machine copies it several times
class State:
    """Everything that one node knows.  Times are seconds on its own monotonic clock."""

    settings: Settings
    phase: Phase = Phase.IDLE
    node: NodeRecord | None = None
    round_number: int = 0
    located: bool = False
    ticket: int = 0
    leader: int = 1  # whom I watch: a ticket before the seal, a group rank after it
    previous: Previous | None = None
    summary: RoundSummary | None = None
    assignment: Assignment | None = None
    # the sealer's collection
    tickets: int = 0
    nodes: Mapping[int, NodeRecord] = field(factory=dict)
    gather_since: float = 0.0
    last_arrival: float = 0.0
    seal_at: float | None = None
    # standbys
    join_request_at: float | None = None
    knock_limit: float = 0.0
    asked_for: int = 0
    watched_rank: int = 0  # of the round that runs; -1: all of them
    # life
    beat_count: int = 0
    next_beat: float | None = None
    looking: bool = False
    look_at: float | None = None  # when a silent node's patience is over
    liveness: Liveness = field(factory=Liveness)
    done: bool = False
    joins_next: NodeRecord | None = None  # the agent has stopped its workers and asked before the end was recorded
    # deadlines and trouble
    join_deadline: float | None = None
    pending: Mapping[str, Call] = field(factory=dict)
    failed: tuple[str, ...] = ()
    retry_at: float | None = None
    attempt: int = 0
    outage_since: float | None = None
    tried_at: float | None = None  # when the last attempt of an outage began
    problem: str = ""  # what the store last said of itself
    waiting_for: str | None = None
    reason: str = ""


def wake_at(state: State) -> float | None:
    """Return when the machine wants a :class:`Tick` next; ``None`` if only an input can move it."""
    if state.phase in FINAL:
        return None
    times = [state.next_beat, state.look_at, state.seal_at, state.join_request_at, state.retry_at]
    if state.phase in JOINING:
        times.append(state.join_deadline)
    known = [time for time in times if time is not None]
    return min(known) if known else None


# --- inputs ---------------------------------------------------------------------------------------------------------


@final
@frozen
class Join:
    """The agent wants into the next round (its workers, if any, are gone)."""

    node: NodeRecord


@final
@frozen
class End:
    """The agent says that the running round is over; the first one recorded wins."""

    end: RoundEnd


@final
@frozen
class Done:
    """All workers of this node have succeeded."""


@final
@frozen
class Leave:
    """The agent goes away."""


@final
@frozen
class Reply:
    """The store has answered ``call``."""

    call: Call
    value: Any


@final
@frozen
class Failed:
    """``call`` (``None``: the wait) has failed; ``lost`` if the store is gone for good."""

    call: Call | None
    problem: str
    lost: bool = False


@final
@frozen
class Appeared:
    """The key that was waited for exists."""

    key: str
    value: bytes


@final
@frozen
class Ordered:
    """The answer of ``decide_ranks``: node ids by group rank, or why there is none."""

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


Input = Join | End | Done | Leave | Reply | Failed | Appeared | Ordered | Rescaled | Tick

# --- commands and outputs -------------------------------------------------------------------------------------------


@final
@frozen
class Call:
    """One store operation: ``add`` (key, amount), ``create``/``put`` (one item), ``put_many``, ``get`` (keys)."""

    tag: str
    operation: str
    keys: tuple[str, ...]
    values: tuple[bytes, ...] = ()
    amount: int = 0


@final
@frozen
class Wait:
    """Wait for ``key`` (instead of whatever was waited for); ``None``: for nothing."""

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


@final
@frozen
class Joined:
    """Told to the agent: this node is a member of a sealed round."""

    assignment: Assignment


@final
@frozen
class Ended:
    """Told to the agent: the round it ran in has ended; stop the workers."""

    end: RoundEnd


@final
@frozen
class NodeDeclined:
    """A node came only to tell why it is not fit for the round that this one gathers nodes for."""

    reason: str


@final
@frozen
class StandingBy:
    """Told to the agent: the round is full or running; this node is in line for the next one."""

    reason: str


@final
@frozen
class Closed:
    """Told to the agent: the job is over."""

    end: RoundEnd


@final
@frozen
class GaveUp:
    """Told to the agent: this node cannot go on."""

    kind: FailureKind
    problem: str


@final
@frozen
class Gone:
    """Told to the driver: this node has left."""


Output = Joined | Ended | StandingBy | NodeDeclined | Closed | GaveUp | Gone
Command = Call | Wait | OrderNodes | AskRescale | Joined | Ended | StandingBy | NodeDeclined | Closed | GaveUp | Gone


@final
@frozen
class Step:
    """What one step of the machine results in."""

    state: State
    commands: tuple[Command, ...]
    reason: str
