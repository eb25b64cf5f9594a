"""One step of the rendezvous machine in the making, and what several phases need.  Pure.

What does not live here: which input leads where (:mod:`quorate.rendezvous._machine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from ..errors import FailureKind, StoreCorruptError
from ..records import Cause, RoundEnd, RoundSummary, Verdict
from ._gather import missing_survivors
from ._liveness import Beat, BeatState, Liveness
from ._protocol import (
    Call,
    Closed,
    Command,
    GaveUp,
    Gone,
    Key,
    Phase,
    State,
    Wait,
)
from ._wire import decode_object, encode


class Turn:
    """One step in the making: the state so far, and the commands it has led to."""

    __slots__ = ("commands", "now", "state")

    def __init__(self, state: State, now: float) -> None:
        self.state, self.now = state, now
        self.commands: list[Command] = []

    def set(self, **changes: Any) -> None:
        self.state = evolve(self.state, **changes)

    def go(self, phase: Phase, reason: str, **changes: Any) -> None:
        self.set(phase=phase, reason=reason, **changes)

    def tell(self, command: Command) -> None:
        self.commands.append(command)

    def call(self, tag: str, operation: str, *keys: str, values: tuple[bytes, ...] = (), amount: int = 0) -> None:
        call = Call(tag, operation, keys, values, amount)
        self.set(pending={**self.state.pending, tag: call})
        self.tell(call)

    def wait(self, key: str | None) -> None:
        self.set(waiting_for=key)
        self.tell(Wait(key))

    def give_up(self, kind: FailureKind, problem: str) -> None:
        self.stop(Phase.FAILED, problem)
        self.tell(GaveUp(kind, problem))

    def stop(self, phase: Phase, reason: str) -> None:
        self.go(phase, reason, pending={}, failed=(), retry_at=None)
        self.set(seal_at=None, knock_at=None, next_beat=None, look_at=None)
        self.wait(None)

    def beat(self, key: str, state: BeatState = BeatState.RUN) -> bytes:
        assert self.state.node is not None
        self.set(beat_count=self.state.beat_count + 1)
        return Beat(self.state.beat_count, state, self.state.node.host).encode()


def take_ticket(turn: Turn, number: int) -> None:
    turn.go(
        Phase.TICKETING,
        f"joining round {number}",
        round_number=number,
        leader=1,
        watched_rank=0,
        nodes={},
        tickets=0,
        asked_for=0,
        liveness=Liveness(),
        looking=False,
        look_at=None,
        seal_at=None,
        knock_at=None,
        next_beat=None,
    )
    turn.call("ticket", "add", Key.tickets(number), amount=1)


def read_summary(number: int, value: bytes) -> RoundSummary:
    key = Key.sealed(number)
    return summary_of(number, decode_object(key, value, "sealed"))


def summary_of(number: int, data: Mapping[str, Any]) -> RoundSummary:
    """Return what a seal says of its round.  Raises StoreCorruptError for what no sealer writes."""
    key = Key.sealed(number)
    names = ("nodes", "world_size", "min_nodes", "max_nodes", "restart_count")
    numbers = [data.get(name, 0) for name in names]
    if not all(isinstance(value, int) and value >= 0 for value in numbers):
        raise StoreCorruptError(key, "its counts are not whole numbers")
    return RoundSummary(number, *numbers)


def close(turn: Turn, end: RoundEnd) -> None:
    turn.stop(Phase.CLOSED, end.reason)
    turn.tell(Closed(end))


def go_away(turn: Turn, word: BeatState) -> None:
    """Leave, and say so in the heartbeat if anybody may be watching it."""
    known = turn.state.node is not None and (turn.state.assignment is not None or turn.state.ticket > 0)
    turn.stop(Phase.LEFT, "left")
    if known:
        turn.call("left", "put", my_beat_key(turn.state), values=(turn.beat("", word),))
    else:
        turn.tell(Gone())


def end_with(turn: Turn, cause: Cause, verdict: Verdict, reason: str, lost_ranks: tuple[int, ...] = ()) -> None:
    state = turn.state
    assert state.node is not None
    assert state.assignment is not None
    end = RoundEnd(
        state.round_number,
        cause,
        verdict,
        reason,
        node_id=state.node.node_id,
        host=state.node.host,
        restart_count=state.assignment.restart_count,
        lost_ranks=lost_ranks,
    )
    turn.call("end", "create", Key.ended(state.round_number), values=(encode(end),))


def my_beat_key(state: State) -> str:
    if state.assignment is not None:
        return Key.rank_beat(state.assignment.round_number, state.assignment.group_rank)
    return Key.ticket_beat(state.round_number, state.ticket)


def all_beat_keys(state: State) -> tuple[str, ...]:
    seat = state.assignment
    assert seat is not None
    return tuple(Key.rank_beat(seat.round_number, rank) for rank in range(seat.group_world_size))


def _looked_at(state: State, now: float) -> tuple[str, ...]:
    """Return the keys that this node has to watch now: constant for all but the sealer and the first node."""
    n = state.round_number
    if state.phase is Phase.GATHERING:
        previous = state.previous.summary.round_number if state.previous is not None else 0
        # Should another node have sealed while I was away, the seal is the first thing to learn.
        back = [Key.sealed(n)]
        back += [Key.ticket_beat(n, ticket) for ticket in state.nodes if ticket != state.ticket]
        return (*back, *(Key.rank_beat(previous, rank) for rank in missing_survivors(state)))
    if state.phase is Phase.AWAITING:
        return (Key.ticket_beat(n, state.leader),)
    if state.phase is Phase.STANDBY:
        if state.ticket != state.leader:
            return (Key.ticket_beat(n, state.leader),)
        assert state.previous is not None
        summary = state.previous.summary
        ranks = range(summary.group_world_size) if state.watched_rank < 0 else (state.watched_rank,)
        return tuple(Key.rank_beat(summary.round_number, rank) for rank in ranks)
    if state.phase is Phase.RUNNING:
        seat = state.assignment
        assert seat is not None
        if seat.group_rank <= state.leader:
            mine = Key.rank_beat(n, seat.group_rank)
            return tuple(key for key in all_beat_keys(state) if key != mine)
        return (Key.rank_beat(n, state.leader),)
    return ()


def look(turn: Turn) -> None:
    keys = _looked_at(turn.state, turn.now)
    if keys and not turn.state.looking:
        turn.set(looking=True)
        turn.call("look", "get", *keys)
