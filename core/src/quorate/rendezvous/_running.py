"""Phases ``running`` and ``ended``: a sealed round, from its first beat to its recorded end.  Pure."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from ..records import Assignment, Cause, Verdict
from ._liveness import Beat, BeatState, Liveness
from ._protocol import (
    Appeared,
    Done,
    End,
    Ended,
    Joined,
    Key,
    Phase,
    Previous,
)
from ._turn import Turn, all_beat_keys, close, end_with, look, my_beat_key
from ._wire import decode_end, encode


def enter_round(turn: Turn, seat: Assignment) -> None:
    turn.go(
        Phase.RUNNING,
        f"round {seat.round_number}: group rank {seat.group_rank} of {seat.group_world_size}, "
        f"global ranks {seat.first_rank} to {seat.first_rank + seat.local_world_size - 1} of {seat.world_size}",
        assignment=seat,
        leader=0,
        liveness=Liveness(),
        looking=False,
        look_at=None,
        nodes={},
        join_deadline=None,
        next_beat=turn.now + turn.state.settings.beat_interval,
    )
    turn.tell(Joined(seat))
    turn.wait(Key.ended(seat.round_number))
    turn.call("beat", "put", my_beat_key(turn.state), values=(turn.beat(""),))


def end(turn: Turn, event: End) -> None:
    number = turn.state.round_number
    turn.call("end", "create", Key.ended(number), values=(encode(evolve(event.end, round_number=number)),))


def on_end(turn: Turn, value: Any) -> None:
    if value:  # only the writer counts the round: the counter is a hint for newcomers, and never runs ahead by this
        turn.call("hint", "add", Key.ROUND, amount=1)


def ended(turn: Turn, event: Appeared) -> None:
    state = turn.state
    assert state.summary is not None
    if event.key != Key.ended(state.round_number):
        return
    end = decode_end(event.key, event.value)
    turn.set(previous=Previous(state.summary, end), waiting_for=None)
    if end.verdict.is_terminal:
        close(turn, end)
        return
    turn.go(Phase.ENDED, end.reason, round_number=state.round_number + 1)
    turn.tell(Ended(end))


def done(turn: Turn, event: Done) -> None:
    if not turn.state.done:
        turn.set(done=True)
        turn.call("mark", "put", my_beat_key(turn.state), values=(turn.beat("", BeatState.DONE),))


def on_mark(turn: Turn, value: Any) -> None:
    turn.call("done", "add", Key.done(turn.state.round_number), amount=1)


def on_done(turn: Turn, value: Any) -> None:
    """Whoever finishes last checks, since a retried count may be too high, and ends the job."""
    state = turn.state
    assert state.assignment is not None
    if int(value) >= state.assignment.group_world_size:
        turn.call("check", "get", *all_beat_keys(state))


def on_check(turn: Turn, values: list[bytes | None]) -> None:
    beats = [Beat.decode(value) for value in values if value is not None]
    if len(beats) == len(values) and all(beat.state.is_done for beat in beats):
        end_with(turn, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers of all nodes have succeeded")


def judge_members(turn: Turn) -> None:
    state = turn.state
    seat = state.assignment
    assert seat is not None
    if seat.group_rank > state.leader:
        key = Key.rank_beat(state.round_number, state.leader)
        if state.liveness.has_left(key) or state.liveness.still_for(key) > state.settings.patience:
            turn.set(leader=state.leader + 1)
            look(turn)
        return
    lost: list[str] = []
    ranks: list[int] = []
    finished = 1 if state.done else 0
    for rank, key in enumerate(all_beat_keys(state)):
        if rank == seat.group_rank:
            continue
        beat = state.liveness.beat(key)
        name = f"group rank {rank}" + (f" ({beat.host})" if beat is not None and beat.host else "")
        if beat is not None and beat.state.is_done:
            finished += 1
        elif beat is not None and beat.state.is_gone:
            ranks.append(rank)
            lost.append(f"{name} left")
        elif state.liveness.still_for(key) > state.settings.patience:
            ranks.append(rank)
            lost.append(f"{name} is lost: no heartbeat within the lease of {state.settings.lease_timeout:g} s")
    if lost and "end" not in state.pending:
        end_with(turn, Cause.NODE_LOST, Verdict.RESCALE, "; ".join(lost), tuple(ranks))
    elif finished == seat.group_world_size and "end" not in state.pending:
        end_with(turn, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers of all nodes have succeeded")
