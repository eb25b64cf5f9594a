"""What one node knows: the state of the rendezvous machine, and the records of its parts.

All records are frozen; a step of the machine makes a new state.  Times are seconds on the node's own monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from attrs import field, frozen

from ..records import Assignment, NodeRecord, RoundEnd, RoundSummary
from ._liveness import Liveness
from ._protocol import FINAL, JOINING, Call, Command, Phase, Purpose, Settings

#: The phases of a member of a round, whose heartbeats the others watch.
_MEMBER = frozenset({Phase.RUNNING, Phase.ENDED})


@final
@frozen
class Seal:
    """Who sealed a round, and which ticket its group rank 0 has; 0: not known."""

    sealer: int = 0
    first_ticket: int = 0


@final
@frozen
class PreviousRound:
    """The round before the one being joined: how it was sealed, and how it ended (``None``: it still runs)."""

    summary: RoundSummary
    ended: RoundEnd | None = None
    seal: Seal = field(factory=Seal)


@final
@frozen
class RoundSearch:
    """Between which numbers the job's round is, as far as this node has read; ``step`` is how far it looks next."""

    low: int = 0
    high: int | None = None
    step: int = 1

    def above(self, number: int) -> RoundSearch:
        """Round ``number`` has ended."""
        is_beyond = self.high is not None and number >= self.high  # rounds have ended meanwhile
        return RoundSearch(number + 1, None if is_beyond else self.high, 1 if is_beyond else 2 * self.step)

    def below(self, number: int) -> RoundSearch:
        """The round before ``number`` has not ended."""
        return RoundSearch(min(self.low, number - 1), number - 1, 2 * self.step)

    def next_number(self) -> int:
        """Return the round to read next: near at first, then ever further away, then halfway between the bounds."""
        reach = self.step // 2 - 1
        if self.high is None:
            return self.low + reach
        return max(self.low, self.high - reach) if self.low == 0 else (self.low + self.high) // 2


@final
@frozen
class Gathering:
    """What the sealer has collected; ``nodes`` are the records by ticket."""

    tickets: int = 0
    nodes: Mapping[int, NodeRecord] = field(factory=dict)
    since: float = 0.0
    last_arrival: float = 0.0
    seal_at: float | None = None  # when the round may be sealed even if no other node comes
    has_looked: bool = False  # the heartbeats of the last round's nodes were read after that round's end


@final
@frozen
class Standby:
    """How far a standby is with asking for a new round.

    ``claimed_key`` is the heartbeat of the member whose group rank this node claims, as long as that one may be alive.
    """

    settle_until: float = 0.0  # after this it asks even if nodes still arrive
    count_at: float | None = None  # when it counts the waiting nodes again
    counted: int = 0
    claimed_key: str | None = None


@final
@frozen
class Watch:
    """What this node has read of the other nodes' heartbeats."""

    liveness: Liveness = field(factory=Liveness)
    tickets: Mapping[int, int] = field(factory=dict)  # of some members, by group rank; 0: the store does not say
    is_reading: bool = False
    read_at: float | None = None  # when a silent node's lease is over
    eager_until: float = 0.0  # until then it reads with each heartbeat: a node that dies now must not seem newer


@final
@frozen
class Standing:
    """What this member of a round can prove to the others.

    ``proven_at``: they knew it alive then, and the round ran.  ``claimed_at``: the last heartbeat that arrived after a
    gap was sent then; whether the round had ended is being asked.
    """

    proven_at: float = 0.0
    claimed_at: float = 0.0
    is_cut_off: bool = False


@final
@frozen
class StoreTrouble:
    """What has failed since the store last answered."""

    since: float | None = None
    problem: str = ""
    failed: tuple[Purpose, ...] = ()
    retry_at: float | None = None
    attempts: int = 0
    tried_at: float | None = None  # when the last attempt began


@final
@frozen
class Report:
    """Since when this node waits, when it says so next, and how many nodes its last note named."""

    since: float = 0.0
    at: float | None = None
    noted: int = 0


@final
# Each step copies the state several times, and a dictionary is copied faster than slots (decision 20).
@frozen(slots=False)
class State:
    """Everything that one node knows."""

    settings: Settings
    phase: Phase = Phase.IDLE
    reason: str = ""
    node: NodeRecord | None = None
    # the round that this node joins or is in
    round_number: int = 0
    is_located: bool = False  # the round number is known, not merely the hint
    search: RoundSearch = field(factory=RoundSearch)
    join_deadline: float | None = None
    ticket: int = 0
    leader: int = 1  # the node to watch: its ticket before the seal, its group rank after it
    previous: PreviousRound | None = None
    summary: RoundSummary | None = None
    seal: Seal = field(factory=Seal)
    assignment: Assignment | None = None
    is_done: bool = False
    next_join: NodeRecord | None = None  # the agent asked for the next round before this one's end was recorded
    # parts
    gathering: Gathering = field(factory=Gathering)
    standby: Standby = field(factory=Standby)
    watch: Watch = field(factory=Watch)
    trouble: StoreTrouble = field(factory=StoreTrouble)
    report: Report = field(factory=Report)
    standing: Standing = field(factory=Standing)
    # this node's own heartbeat
    heartbeat_count: int = 0
    next_heartbeat_at: float | None = None
    # the store
    pending: Mapping[Purpose, Call] = field(factory=dict)
    waiting_for: str | None = None


def cut_off_at(state: State) -> float | None:
    """Return when the others may go on without this node; ``None`` if that does not matter, or was reported."""
    is_member = state.phase in _MEMBER and state.assignment is not None
    if not is_member or state.standing.is_cut_off or not state.settings.tracks_cut_off:
        return None
    return state.standing.proven_at + state.settings.timeouts.cut_off_timeout


def wake_at(state: State) -> float | None:
    """Return when the machine needs its next ``Tick``; ``None`` if only another input can move it."""
    if state.phase in FINAL:
        return state.next_heartbeat_at
    times = [
        state.next_heartbeat_at,
        state.watch.read_at,
        state.gathering.seal_at,
        state.standby.count_at,
        state.trouble.retry_at,
        state.report.at,
        state.join_deadline if state.phase in JOINING else None,
        cut_off_at(state),
    ]
    return min((time for time in times if time is not None), default=None)


@final
@frozen
class Step:
    """The result of one step of the machine."""

    state: State
    commands: tuple[Command, ...]
    reason: str
