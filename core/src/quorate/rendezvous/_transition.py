"""One step of the rendezvous machine, and the actions that several phases share.  Pure.

What does not live here: which input leads where (:mod:`quorate.rendezvous._machine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from attrs import evolve

from .. import _transition
from .._bounded import LARGEST_COUNTER, MOST_NODES, MOST_TICKETS
from ..errors import FailureKind, StoreCorruptError
from ..records import Assignment, Cause, NodeRecord, RoundEnd, RoundSummary, Verdict
from ._gather import missing_survivors
from ._liveness import Heartbeat, HeartbeatState
from ._members import keys_to_read
from ._protocol import Call, Command, JobClosed, Key, Left, Operation, Phase, Purpose, RendezvousFailed, Wait
from ._state import Gathering, PreviousRound, Report, Seal, Standby, State, Watch
from ._wire import decode_object, encode

#: How many nodes ahead in line one node reads at once, at most.
_MOST_AHEAD = 64


@final
class Transition(_transition.Transition[State, Command]):
    """One step of the rendezvous machine."""

    def set(self, **changes: Any) -> None:
        # As ``evolve``, in a third of the time: the state's fields are in a dictionary (decision 20).
        self.state = State(**{**vars(self.state), **changes})

    @property
    def node(self) -> NodeRecord:
        """This node's record; only once the agent has asked to join."""
        assert self.state.node is not None
        return self.state.node

    @property
    def previous(self) -> PreviousRound:
        """The round before; only where there is one."""
        assert self.state.previous is not None
        return self.state.previous

    @property
    def summary(self) -> RoundSummary:
        """What the seal says of the round; only once it is sealed."""
        assert self.state.summary is not None
        return self.state.summary

    @property
    def assignment(self) -> Assignment:
        """This node's place in the round; only in a round."""
        assert self.state.assignment is not None
        return self.state.assignment

    def enter(self, phase: Phase, reason: str, **changes: Any) -> None:
        """Change the phase, with the reason for it."""
        self.set(phase=phase, reason=reason, **changes)

    # --- store calls ------------------------------------------------------------------------------------------------

    def add(self, purpose: Purpose, key: str, amount: int) -> None:
        self._call(Call(purpose, Operation.ADD, (key,), amount=amount))

    def create(self, purpose: Purpose, key: str, value: bytes) -> None:
        self._call(Call(purpose, Operation.CREATE, (key,), (value,)))

    def put(self, purpose: Purpose, key: str, value: bytes) -> None:
        self._call(Call(purpose, Operation.PUT, (key,), (value,)))

    def put_many(self, purpose: Purpose, items: Mapping[str, bytes]) -> None:
        self._call(Call(purpose, Operation.PUT_MANY, tuple(items), tuple(items.values())))

    def get(self, purpose: Purpose, keys: Sequence[str]) -> None:
        self._call(Call(purpose, Operation.GET, tuple(keys)))

    def _call(self, call: Call) -> None:
        self.set(pending={**self.state.pending, call.purpose: call})
        self.emit(call)

    def wait(self, key: str | None) -> None:
        """Have the one blocking wait wait for ``key`` from now on; ``None``: for nothing."""
        self.set(waiting_for=key)
        self.emit(Wait(key))

    # --- ends -------------------------------------------------------------------------------------------------------

    def give_up(self, kind: FailureKind, problem: str, told_round: int | None = None) -> None:
        self._stop(Phase.FAILED, problem)
        self.emit(RendezvousFailed(kind, problem, told_round))

    def close_job(self, end: RoundEnd) -> None:
        """The job is over.  In a store that outlives it, heartbeats go on until this node has left."""
        state = self.state
        has_key = state.node is not None and (state.assignment is not None or state.ticket > 0)
        self._stop(Phase.CLOSED, end.reason)
        if state.settings.outlives_job and has_key:
            self.set(next_heartbeat_at=self.now + state.settings.timeouts.reading_interval)
        self.emit(JobClosed(end))

    def leave_job(self, last_state: HeartbeatState) -> None:
        """Leave, and report it with a last heartbeat if other nodes may be watching this one."""
        state = self.state
        may_be_watched = state.node is not None and (state.assignment is not None or state.ticket > 0)
        self._stop(Phase.LEFT, "left")
        if may_be_watched:
            self.put_heartbeat(Purpose.LEAVING_HEARTBEAT, last_state)
        else:
            self.emit(Left())

    def _stop(self, phase: Phase, reason: str) -> None:
        state = self.state
        self.enter(
            phase,
            reason,
            pending={},
            next_heartbeat_at=None,
            trouble=evolve(state.trouble, failed=(), retry_at=None),
            gathering=evolve(state.gathering, seal_at=None),
            standby=evolve(state.standby, count_at=None),
            watch=evolve(state.watch, read_at=None),
            report=Report(),
        )
        self.wait(None)

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def put_heartbeat(self, purpose: Purpose, heartbeat_state: HeartbeatState = HeartbeatState.RUNNING) -> None:
        """Write this node's next heartbeat."""
        self.set(heartbeat_count=self.state.heartbeat_count + 1)
        sent_ms = max(0, int(self.now * 1000))
        heartbeat = Heartbeat(self.state.heartbeat_count, heartbeat_state, self.node.host, sent_ms)
        self.put(purpose, own_heartbeat_key(self.state), heartbeat.encode())

    def read_heartbeats(self) -> None:
        """Read the heartbeats of the nodes that this one has to watch now, and what it waits for."""
        keys = (*_awaited_keys(self.state), *_watched_keys(self.state))
        if keys and not self.state.watch.is_reading:
            self.set(watch=evolve(self.state.watch, is_reading=True))
            self.get(Purpose.HEARTBEATS, keys)


# --- actions of several phases --------------------------------------------------------------------------------------


def take_ticket(transition: Transition, number: int) -> None:
    """Get in line for round ``number``."""
    transition.enter(
        Phase.TICKETING,
        f"joining round {number}",
        round_number=number,
        leader=1,
        next_heartbeat_at=None,
        gathering=Gathering(),
        standby=Standby(),
        watch=Watch(eager_until=transition.now + transition.state.settings.timeouts.reading_interval),
    )
    transition.add(Purpose.TICKET, Key.tickets(number), 1)


def count_waiting_nodes(transition: Transition) -> None:
    """Ask how many tickets of the next round are taken, unless this node may turn out not to belong to the job."""
    if transition.state.standby.claimed_key is None:
        transition.add(Purpose.WAITING_COUNT, Key.tickets(transition.state.round_number), 0)


def record_round_end(
    transition: Transition,
    summary: RoundSummary,
    cause: Cause,
    verdict: Verdict,
    reason: str,
    lost_ranks: Sequence[int] = (),
    lost_counts: Sequence[int] = (),
) -> None:
    """Record why the round of ``summary`` ends, unless another node was first."""
    node = transition.node
    end = RoundEnd(
        summary.round_number,
        cause,
        verdict,
        reason,
        node_id=node.node_id,
        host=node.host,
        restart_count=summary.restart_count,
        lost_ranks=tuple(lost_ranks),
        lost_counts=tuple(lost_counts),
    )
    transition.create(Purpose.ROUND_END, Key.ended(summary.round_number), encode(end))


def read_summary(number: int, seal: Mapping[str, Any]) -> RoundSummary:
    """Return what a seal says about its round.  Raises StoreCorruptError for what no sealer writes."""
    key = Key.sealed(number)
    numbers = []
    for name, low, high in _SEAL_COUNTS:
        value = seal.get(name, 0)
        if type(value) is not int or not low <= value <= high:
            raise StoreCorruptError(key, f"its {name} is not a whole number from {low} to {high}")
        numbers.append(value)
    summary = RoundSummary(number, *numbers)
    if not summary.min_nodes <= summary.group_world_size <= min(summary.max_nodes, summary.world_size):
        raise StoreCorruptError(key, "its counts contradict each other")
    return summary


_SEAL_COUNTS = (
    ("nodes", 1, MOST_NODES),
    ("world_size", 1, (1 << 31) - 1),
    ("min_nodes", 1, MOST_NODES),
    ("max_nodes", 1, (1 << 31) - 1),
    ("restart_count", 0, (1 << 31) - 1),
)


def read_seal(number: int, seal: Mapping[str, Any]) -> Seal:
    """Return who sealed the round.  Raises StoreCorruptError for what no sealer writes."""
    sealer, first = seal.get("sealer"), seal.get("first_ticket", 0)
    if type(sealer) is not int or not 1 <= sealer <= MOST_TICKETS:
        raise StoreCorruptError(Key.sealed(number), "it names no sealer")
    if type(first) is not int or not 0 <= first <= MOST_TICKETS:
        raise StoreCorruptError(Key.sealed(number), "its first_ticket is not a ticket")
    return Seal(sealer, first)


def check_tickets(key: str, count: Any, low: int = 0) -> int:
    """Return how many tickets a counter says were taken.  Raises StoreCorruptError for what no round comes to."""
    if type(count) is not int or not low <= count <= MOST_TICKETS:
        raise StoreCorruptError(key, f"it counts {_shown(count)} tickets, and no round has more than {MOST_TICKETS}")
    return count


def check_round(count: Any) -> int:
    """Return how many rounds the hint says have ended.  Raises StoreCorruptError for what is not such a count."""
    if type(count) is not int or not 0 <= count <= LARGEST_COUNTER:
        raise StoreCorruptError(Key.ROUND, f"it counts {_shown(count)} rounds")
    return count


def _shown(count: Any) -> str:
    return str(count) if type(count) is int and abs(count) <= LARGEST_COUNTER else "more than 2**63"


def decode_seal(number: int, value: bytes) -> Mapping[str, Any]:
    return decode_object(Key.sealed(number), value, "sealed")


# --- heartbeat keys -------------------------------------------------------------------------------------------------


def own_heartbeat_key(state: State) -> str:
    if state.assignment is not None:
        return Key.rank_heartbeat(state.assignment.round_number, state.assignment.group_rank)
    return Key.ticket_heartbeat(state.round_number, state.ticket)


def silence_limit_of(state: State) -> float:
    """Return the seconds after which a node that this one watches is lost.

    A standby that watches the members has an interval more: they are the first to record a loss, if any is left.
    """
    settings = state.settings
    is_first_in_line = state.phase is Phase.STANDBY and state.ticket == state.leader
    return settings.silence_limit + (settings.timeouts.heartbeat_interval if is_first_in_line else 0.0)


def member_heartbeat_keys(state: State) -> tuple[str, ...]:
    """Return the heartbeat keys of all members of this node's round, by group rank."""
    assignment = state.assignment
    assert assignment is not None
    return tuple(Key.rank_heartbeat(assignment.round_number, rank) for rank in range(assignment.group_world_size))


def other_ranks(assignment: Assignment) -> list[int]:
    """Return the group ranks of the other members."""
    return [rank for rank in range(assignment.group_world_size) if rank != assignment.group_rank]


def _keys_ahead(state: State) -> tuple[str, ...]:
    """Return the heartbeats of the nodes that come next in line, before this one.

    One at first, and as many more as have left the line before them, up to a limit.  Many may have left: a node that is
    refused may be started again and again.
    """
    last = min(state.ticket, state.leader + min(state.leader, _MOST_AHEAD))
    return tuple(Key.ticket_heartbeat(state.round_number, ticket) for ticket in range(state.leader, last))


def _awaited_keys(state: State) -> tuple[str, ...]:
    """Return the key that this node waits for, if what it says must not come late.

    The blocking wait has a connection of its own.  It may stand still where packets are lost, while heartbeats arrive.
    """
    is_told = state.phase in (Phase.AWAITING, Phase.STANDBY, Phase.RUNNING) and state.settings.max_nodes > 1
    return (state.waiting_for,) if is_told and state.waiting_for is not None else ()


def _watched_keys(state: State) -> tuple[str, ...]:
    """Return the keys that this node has to watch now.

    Only a few for all nodes but the sealer, a round's first node and the first in line.
    """
    number = state.round_number
    if state.phase is Phase.GATHERING:
        previous = state.previous.summary.round_number if state.previous is not None else 0
        # If another node has sealed in the meantime, the seal is the first thing to learn.
        return (
            Key.sealed(number),
            *(Key.ticket_heartbeat(number, ticket) for ticket in state.gathering.nodes if ticket != state.ticket),
            *(Key.rank_heartbeat(previous, rank) for rank in missing_survivors(state)),
        )
    if state.phase is Phase.AWAITING:
        return _keys_ahead(state) if state.waiting_for is not None else ()  # else the round is sealed
    if state.phase is Phase.STANDBY and state.ticket != state.leader:
        claimed = state.standby.claimed_key
        return (*_keys_ahead(state), *((claimed,) if claimed is not None else ()))
    if state.phase is Phase.STANDBY:
        assert state.previous is not None
        summary = state.previous.summary
        return keys_to_read(state, summary.round_number, range(summary.group_world_size))
    if state.phase is Phase.RUNNING:
        assert state.assignment is not None
        rank = state.assignment.group_rank
        if rank > state.leader:
            return keys_to_read(state, number, (state.leader,))
        return keys_to_read(state, number, other_ranks(state.assignment))
    return ()
