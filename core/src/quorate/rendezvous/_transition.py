"""One step of the rendezvous machine in the making, and what several phases need.  Pure.

What does not live here: which input leads where (:mod:`quorate.rendezvous._machine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from .. import _transition
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


@final
class Transition(_transition.Transition[State, Command]):
    """One step of the rendezvous machine in the making."""

    def enter(self, phase: Phase, reason: str, **changes: Any) -> None:
        """Change the phase, and say why."""
        self.set(phase=phase, reason=reason, **changes)

    def call(self, tag: str, operation: str, *keys: str, values: tuple[bytes, ...] = (), amount: int = 0) -> None:
        call = Call(tag, operation, keys, values, amount)
        self.set(pending={**self.state.pending, tag: call})
        self.emit(call)

    def wait(self, key: str | None) -> None:
        self.set(waiting_for=key)
        self.emit(Wait(key))

    def give_up(self, kind: FailureKind, problem: str) -> None:
        self.stop(Phase.FAILED, problem)
        self.emit(GaveUp(kind, problem))

    def stop(self, phase: Phase, reason: str) -> None:
        self.enter(phase, reason, pending={}, failed=(), retry_at=None)
        self.set(seal_at=None, join_request_at=None, next_beat=None, look_at=None)
        self.wait(None)

    def beat(self, key: str, state: BeatState = BeatState.RUN) -> bytes:
        assert self.state.node is not None
        self.set(beat_count=self.state.beat_count + 1)
        return Beat(self.state.beat_count, state, self.state.node.host).encode()


def take_ticket(transition: Transition, number: int) -> None:
    transition.enter(
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
        join_request_at=None,
        next_beat=None,
    )
    transition.call("ticket", "add", Key.tickets(number), amount=1)


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


def close(transition: Transition, end: RoundEnd) -> None:
    transition.stop(Phase.CLOSED, end.reason)
    transition.emit(Closed(end))


def go_away(transition: Transition, word: BeatState) -> None:
    """Leave, and say so in the heartbeat if anybody may be watching it."""
    known = transition.state.node is not None and (
        transition.state.assignment is not None or transition.state.ticket > 0
    )
    transition.stop(Phase.LEFT, "left")
    if known:
        transition.call("left", "put", my_beat_key(transition.state), values=(transition.beat("", word),))
    else:
        transition.emit(Gone())


def end_with(
    transition: Transition, cause: Cause, verdict: Verdict, reason: str, lost_ranks: tuple[int, ...] = ()
) -> None:
    state = transition.state
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
    transition.call("end", "create", Key.ended(state.round_number), values=(encode(end),))


def my_beat_key(state: State) -> str:
    if state.assignment is not None:
        return Key.rank_beat(state.assignment.round_number, state.assignment.group_rank)
    return Key.ticket_beat(state.round_number, state.ticket)


def all_beat_keys(state: State) -> tuple[str, ...]:
    assignment = state.assignment
    assert assignment is not None
    return tuple(Key.rank_beat(assignment.round_number, rank) for rank in range(assignment.group_world_size))


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
        assignment = state.assignment
        assert assignment is not None
        if assignment.group_rank <= state.leader:
            mine = Key.rank_beat(n, assignment.group_rank)
            return tuple(key for key in all_beat_keys(state) if key != mine)
        return (Key.rank_beat(n, state.leader),)
    return ()


def look(transition: Transition) -> None:
    keys = _looked_at(transition.state, transition.now)
    if keys and not transition.state.looking:
        transition.set(looking=True)
        transition.call("look", "get", *keys)
