"""Phases ``running`` and ``ended``: a sealed round, from its first heartbeat to its recorded end.  Pure."""

from __future__ import annotations

from attrs import evolve

from .._bounded import LARGEST_COUNTER
from ..records import Assignment, Cause, Verdict
from ._liveness import Heartbeat, HeartbeatState
from ._member_tickets import look_up_tickets
from ._members import heartbeat_key_of, is_ticket_unknown
from ._protocol import Appeared, Done, End, Key, Phase, Purpose, RoundEnded, RoundJoined
from ._state import Gathering, PreviousRound, Report, Watch
from ._transition import Transition, member_heartbeat_keys, other_ranks, record_round_end
from ._wire import decode_end, encode

_ALL_DONE = "all workers of all nodes have succeeded"
#: What is asked of a running round.  In a later round the answer would be taken for one about that.
_ASKED_OF_A_ROUND = frozenset(
    {Purpose.DONE_HEARTBEAT, Purpose.DONE_COUNT, Purpose.DONE_CHECK, Purpose.STANDING, Purpose.MEMBER_TICKETS}
)


def enter_round(transition: Transition, assignment: Assignment) -> None:
    first_ticket = transition.state.seal.first_ticket
    last_rank = assignment.first_rank + assignment.local_world_size - 1
    transition.enter(
        Phase.RUNNING,
        f"round {assignment.round_number}: group rank {assignment.group_rank} of {assignment.group_world_size}, "
        f"global ranks {assignment.first_rank} to {last_rank} of {assignment.world_size}",
        assignment=assignment,
        leader=0,
        join_deadline=None,
        next_heartbeat_at=transition.now + transition.state.settings.timeouts.heartbeat_interval,
        gathering=Gathering(),
        watch=Watch(
            eager_until=transition.now + transition.state.settings.timeouts.reading_interval,
            tickets={0: first_ticket} if first_ticket else {},
        ),
        report=Report(),
    )
    transition.emit(RoundJoined(assignment))
    transition.wait(Key.ended(assignment.round_number))
    transition.put_heartbeat(Purpose.HEARTBEAT)


# --- the round's end ------------------------------------------------------------------------------------------------


def on_end(transition: Transition, event: End) -> None:
    number = transition.state.round_number
    transition.create(Purpose.ROUND_END, Key.ended(number), encode(evolve(event.end, round_number=number)))


def on_end_recorded(transition: Transition, is_writer: bool) -> None:
    """Raise the hint at the round number; only the writer of the end does, so that the hint is not counted twice."""
    if is_writer:
        transition.add(Purpose.NEXT_ROUND_NUMBER, Key.ROUND, 1)


def on_ended(transition: Transition, event: Appeared) -> None:
    state = transition.state
    if event.key != Key.ended(state.round_number):
        return
    end = decode_end(event.key, event.value)
    transition.set(previous=PreviousRound(transition.summary, end, state.seal), waiting_for=None)
    if end.verdict.is_terminal:
        transition.close_job(end)
        return
    pending = {purpose: call for purpose, call in state.pending.items() if purpose not in _ASKED_OF_A_ROUND}
    transition.enter(Phase.ENDED, end.reason, round_number=state.round_number + 1, pending=pending)
    transition.emit(RoundEnded(end))


# --- success --------------------------------------------------------------------------------------------------------


def on_done(transition: Transition, event: Done) -> None:
    if not transition.state.is_done:
        transition.set(is_done=True)
        transition.put_heartbeat(Purpose.DONE_HEARTBEAT, HeartbeatState.DONE)


def on_done_heartbeat(transition: Transition, value: None) -> None:
    transition.add(Purpose.DONE_COUNT, Key.done(transition.state.round_number), 1)


def on_done_count(transition: Transition, value: int) -> None:
    """The last node to finish checks the heartbeats: a retried addition makes the count too high."""
    state = transition.state
    if int(value) >= transition.assignment.group_world_size:
        transition.get(Purpose.DONE_CHECK, member_heartbeat_keys(state))


def on_done_check(transition: Transition, values: list[bytes | None]) -> None:
    heartbeats = [Heartbeat.decode(value) for value in values if value is not None]
    if len(heartbeats) == len(values) and all(heartbeat.state.is_done for heartbeat in heartbeats):
        _record_success(transition)


def _record_success(transition: Transition) -> None:
    record_round_end(transition, transition.summary, Cause.SUCCEEDED, Verdict.SUCCEEDED, _ALL_DONE)


# --- lost nodes -----------------------------------------------------------------------------------------------------


def on_member_heartbeats(transition: Transition) -> None:
    """The lowest live group rank judges all members; the others watch only that one."""
    state = transition.state
    liveness, limit, number = state.watch.liveness, state.settings.silence_limit, state.round_number
    if transition.assignment.group_rank > state.leader:
        if liveness.is_gone(heartbeat_key_of(state, number, state.leader), limit):
            transition.set(leader=state.leader + 1)
            transition.read_heartbeats()
        return
    others = other_ranks(transition.assignment)
    look_up_tickets(transition, number, state.seal.sealer, others)
    lost: list[str] = []
    ranks: list[int] = []
    counts: list[int] = []
    finished = 1 if state.is_done else 0
    for rank in others:
        if is_ticket_unknown(state, number, rank):
            continue
        key = heartbeat_key_of(state, number, rank)
        heartbeat = liveness.heartbeat(key)
        name = f"group rank {rank}" + (f" ({heartbeat.host})" if heartbeat is not None and heartbeat.host else "")
        if heartbeat is not None and heartbeat.state.is_done:
            finished += 1
        elif heartbeat is not None and heartbeat.state.has_left:
            ranks.append(rank)
            counts.append(LARGEST_COUNTER)
            lost.append(f"{name} left")
        elif liveness.is_silent(key, limit):
            lease = state.settings.timeouts.lease_timeout
            ranks.append(rank)
            counts.append(liveness.count_of(Key.rank_heartbeat(number, rank)))
            lost.append(f"{name} is lost: no heartbeat within the lease of {lease:g} s")
    if Purpose.ROUND_END in state.pending:
        return
    if lost:
        reason = "; ".join(lost)
        record_round_end(transition, transition.summary, Cause.NODE_LOST, Verdict.RESCALE, reason, ranks, counts)
    elif finished == transition.assignment.group_world_size:
        _record_success(transition)
