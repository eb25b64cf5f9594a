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
from ._transition import Transition, all_beat_keys, close, end_with, look, my_beat_key
from ._wire import decode_end, encode


def enter_round(transition: Transition, assignment: Assignment) -> None:
    transition.enter(
        Phase.RUNNING,
        f"round {assignment.round_number}: group rank {assignment.group_rank} of {assignment.group_world_size}, "
        f"global ranks {assignment.first_rank} to {assignment.first_rank + assignment.local_world_size - 1} of {assignment.world_size}",
        assignment=assignment,
        leader=0,
        liveness=Liveness(),
        looking=False,
        look_at=None,
        nodes={},
        join_deadline=None,
        next_beat=transition.now + transition.state.settings.heartbeat_interval,
    )
    transition.emit(Joined(assignment))
    transition.wait(Key.ended(assignment.round_number))
    transition.call("beat", "put", my_beat_key(transition.state), values=(transition.beat(""),))


def end(transition: Transition, event: End) -> None:
    number = transition.state.round_number
    transition.call("end", "create", Key.ended(number), values=(encode(evolve(event.end, round_number=number)),))


def on_end(transition: Transition, value: Any) -> None:
    if value:  # only the writer counts the round: the counter is a hint for newcomers, and never runs ahead by this
        transition.call("hint", "add", Key.ROUND, amount=1)


def ended(transition: Transition, event: Appeared) -> None:
    state = transition.state
    assert state.summary is not None
    if event.key != Key.ended(state.round_number):
        return
    end = decode_end(event.key, event.value)
    transition.set(previous=Previous(state.summary, end), waiting_for=None)
    if end.verdict.is_terminal:
        close(transition, end)
        return
    transition.enter(Phase.ENDED, end.reason, round_number=state.round_number + 1)
    transition.emit(Ended(end))


def done(transition: Transition, event: Done) -> None:
    if not transition.state.done:
        transition.set(done=True)
        transition.call("mark", "put", my_beat_key(transition.state), values=(transition.beat("", BeatState.DONE),))


def on_mark(transition: Transition, value: Any) -> None:
    transition.call("done", "add", Key.done(transition.state.round_number), amount=1)


def on_done(transition: Transition, value: Any) -> None:
    """Whoever finishes last checks, since a retried count may be too high, and ends the job."""
    state = transition.state
    assert state.assignment is not None
    if int(value) >= state.assignment.group_world_size:
        transition.call("check", "get", *all_beat_keys(state))


def on_check(transition: Transition, values: list[bytes | None]) -> None:
    beats = [Beat.decode(value) for value in values if value is not None]
    if len(beats) == len(values) and all(beat.state.is_done for beat in beats):
        end_with(transition, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers of all nodes have succeeded")


def judge_members(transition: Transition) -> None:
    state = transition.state
    assignment = state.assignment
    assert assignment is not None
    if assignment.group_rank > state.leader:
        key = Key.rank_beat(state.round_number, state.leader)
        if state.liveness.has_left(key) or state.liveness.still_for(key) > state.settings.patience:
            transition.set(leader=state.leader + 1)
            look(transition)
        return
    lost: list[str] = []
    ranks: list[int] = []
    finished = 1 if state.done else 0
    for rank, key in enumerate(all_beat_keys(state)):
        if rank == assignment.group_rank:
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
        end_with(transition, Cause.NODE_LOST, Verdict.RESCALE, "; ".join(lost), tuple(ranks))
    elif finished == assignment.group_world_size and "end" not in state.pending:
        end_with(transition, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers of all nodes have succeeded")
