"""Phases ``locating``, ``ticketing`` and ``standby``: how a node finds the job's round and gets in line.  Pure."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from ..records import Cause, RoundEnd, Verdict
from ._liveness import BeatState
from ._protocol import (
    Appeared,
    AskRescale,
    Join,
    Key,
    Phase,
    Previous,
    Rescaled,
    StandingBy,
)
from ._running import ended
from ._sealing import gather, judge_sealer
from ._transition import Transition, close, go_away, read_summary, take_ticket
from ._wire import decode_end, encode

#: How long a node that does not join tries to tell the others why.
_TELL_SECONDS = 2.0


def join(transition: Transition, event: Join) -> None:
    state = transition.state
    node = event.node
    if state.phase is Phase.ENDED and state.assignment is not None:
        node = evolve(node, previous_round=state.assignment.round_number, previous_rank=state.assignment.group_rank)
    transition.set(
        node=node,
        join_deadline=transition.now + (_TELL_SECONDS if node.declined else state.settings.join_timeout),
        assignment=None,
        summary=None,
        done=False,
        joins_next=None,
    )
    if state.located:
        take_ticket(transition, state.round_number)
    else:
        transition.enter(Phase.LOCATING, "asking which round the job is in")
        transition.call("count", "add", Key.ROUND, amount=0)


def join_after(transition: Transition, event: Join) -> None:
    """Keep the wish until the running round's end is recorded: the store may be away, and the agent is done waiting."""
    transition.set(joins_next=event.node)


def round_ended(transition: Transition, event: Appeared) -> None:
    """The running round's end is recorded; an agent that has asked for the next round meanwhile joins it now."""
    ended(transition, event)
    node = transition.state.joins_next
    if transition.state.phase is Phase.ENDED and node is not None:
        join(transition, Join(node))


def on_count(transition: Transition, value: Any) -> None:
    """Look at the round that the hint names; where no round has ended yet, get in line for the first at once.

    Should that one be sealed already, its seal says so, as it does to whoever comes while it is being sealed.  Of a
    thousand nodes that start a job this saves each a question.
    """
    node = transition.state.node
    assert node is not None
    if int(value) == 0 and not node.declined:
        transition.set(located=True)
        take_ticket(transition, 0)
    else:
        _look_at_round(transition, int(value))


def _look_at_round(transition: Transition, number: int) -> None:
    transition.set(round_number=number)
    rounds = (number - 1, number) if number > 0 else (number,)
    transition.call("look_round", "get", *(key for n in rounds for key in (Key.sealed(n), Key.ended(n))))


def on_look_round(transition: Transition, values: list[bytes | None]) -> None:
    number = transition.state.round_number
    if number > 0:
        before_sealed, before_ended = values[:2]
        if before_ended is None or before_sealed is None:
            _look_at_round(transition, number - 1)  # the counter ran ahead: its increment was retried
            return
        ended = decode_end(Key.ended(number - 1), before_ended)
        if ended.verdict.is_terminal:  # its writer counts the round, whatever the verdict
            close(transition, ended)
            return
        transition.set(previous=Previous(read_summary(number - 1, before_sealed), ended))
    sealed, over = values[-2:]
    if over is not None:
        ended = decode_end(Key.ended(number), over)
        if ended.verdict.is_terminal:
            close(transition, ended)
        else:
            _look_at_round(transition, number + 1)
        return
    transition.set(located=True)
    if sealed is not None:
        transition.set(previous=Previous(read_summary(number, sealed)))
        number += 1
    take_ticket(transition, number)


def on_ticket(transition: Transition, value: Any) -> None:
    state = transition.state
    assert state.node is not None
    transition.set(ticket=int(value))
    transition.call("record", "put", Key.node(state.round_number, int(value)), values=(encode(state.node),))


def on_record(transition: Transition, value: Any) -> None:
    state = transition.state
    if state.node is not None and state.node.declined:
        go_away(transition, BeatState.LEFT)
        return
    transition.set(next_beat=transition.now + state.settings.heartbeat_interval)
    if state.previous is not None and state.previous.ended is None:
        summary = state.previous.summary
        reason = (
            f"round {summary.round_number} runs with {summary.group_world_size} of at most {summary.max_nodes} "
            "node(s); standing by for the next one"
        )
        transition.enter(
            Phase.STANDBY,
            reason,
            join_deadline=None,
            knock_limit=transition.now + 10 * state.settings.settle_timeout,
        )
        transition.emit(StandingBy(reason))
        transition.wait(Key.ended(summary.round_number))
        if state.ticket == state.leader:
            transition.call("waiting", "add", Key.tickets(transition.state.round_number), amount=0)
    else:
        gather(transition)


def on_waiting(transition: Transition, value: Any) -> None:
    """The first in line counts who waits; once arrivals have settled, it asks whether they are worth a new round."""
    state = transition.state
    assert state.previous is not None
    waiting, summary = int(value), state.previous.summary
    full = summary.group_world_size + waiting >= summary.max_nodes
    if waiting != state.asked_for and not full and transition.now < state.knock_limit:
        transition.set(asked_for=waiting, join_request_at=transition.now + state.settings.settle_timeout)
        return
    transition.set(asked_for=waiting, join_request_at=None)
    transition.emit(AskRescale(summary, waiting))


def on_rescaled(transition: Transition, event: Rescaled) -> None:
    state = transition.state
    assert state.node is not None
    assert state.previous is not None
    if not event.worth_it:
        return
    summary = state.previous.summary
    reason = f"node {state.node.host or state.node.node_id} joined; the round of {summary.group_world_size} re-forms"
    end = RoundEnd(
        summary.round_number,
        Cause.NODE_JOINED,
        Verdict.RESCALE,
        reason,
        node_id=state.node.node_id,
        host=state.node.host,
        restart_count=summary.restart_count,
    )
    transition.call("end", "create", Key.ended(summary.round_number), values=(encode(end),))


def previous_ended(transition: Transition, event: Appeared) -> None:
    state = transition.state
    assert state.previous is not None
    number = state.previous.summary.round_number
    if event.key != Key.ended(number):
        return
    ended = decode_end(event.key, event.value)
    if ended.verdict.is_terminal:
        close(transition, ended)
        return
    transition.set(
        previous=evolve(state.previous, ended=ended),
        join_deadline=transition.now + state.settings.join_timeout,
        join_request_at=None,
    )
    gather(transition)


def judge_standby(transition: Transition) -> None:
    """Should all members of the running round die at once, the first in line notices and ends it."""
    state = transition.state
    if state.ticket != state.leader:
        judge_sealer(transition)
        return
    assert state.previous is not None
    assert state.node is not None
    summary, liveness = state.previous.summary, state.liveness
    ranks = range(summary.group_world_size) if state.watched_rank < 0 else (state.watched_rank,)
    for rank in ranks:
        key = Key.rank_beat(summary.round_number, rank)
        if not liveness.has_left(key) and liveness.still_for(key) <= 2 * state.settings.lease_timeout:
            return
    if state.watched_rank >= 0:
        transition.set(watched_rank=-1)  # the first one is gone, and nobody has said so: look whether anybody is left
        return
    end = RoundEnd(
        summary.round_number,
        Cause.NODE_LOST,
        Verdict.RESCALE,
        f"all {summary.group_world_size} node(s) of round {summary.round_number} were lost",
        node_id=state.node.node_id,
        host=state.node.host,
        restart_count=summary.restart_count,
        lost_ranks=tuple(range(summary.group_world_size)),
    )
    transition.call("end", "create", Key.ended(summary.round_number), values=(encode(end),))
