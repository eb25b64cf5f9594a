"""Phases ``locating``, ``ticketing`` and ``standby``: how a node finds the job's round and gets in line.  Pure."""

from __future__ import annotations

from attrs import evolve

from .._bounded import LARGEST_COUNTER
from ..errors import FailureKind
from ..records import Cause, RoundSummary, Verdict
from ._liveness import HeartbeatState
from ._member_tickets import look_up_tickets
from ._members import heartbeat_key_of, is_ticket_unknown
from ._protocol import Appeared, AskRescale, Join, Key, Phase, Purpose, Rescaled, StandingBy
from ._running import on_ended
from ._sealing import begin_round, on_sealer_heartbeat
from ._state import PreviousRound, RoundSearch, Standby, Standing, State
from ._transition import (
    Transition,
    check_round,
    check_tickets,
    count_waiting_nodes,
    decode_seal,
    read_seal,
    read_summary,
    record_round_end,
    silence_limit_of,
    take_ticket,
)
from ._waiting import begin_reports
from ._wire import decode_end, encode

#: How long a node that declined tries to reach the others.
_DECLINE_SECONDS = 2.0
#: Arrivals settle for at most this many ``settle_timeout`` before a standby asks for a new round.
_MOST_SETTLE_PERIODS = 10


# --- locating -------------------------------------------------------------------------------------------------------


def on_join(transition: Transition, event: Join) -> None:
    state, node = transition.state, event.node
    if state.phase is Phase.ENDED and state.assignment is not None:
        node = evolve(node, previous_round=state.assignment.round_number, previous_rank=state.assignment.group_rank)
    transition.set(
        node=node,
        join_deadline=transition.now + (_DECLINE_SECONDS if node.declined else state.settings.timeouts.join_timeout),
        assignment=None,
        summary=None,
        is_done=False,
        next_join=None,
    )
    if not node.declined:
        begin_reports(transition)
    if state.is_located:
        take_ticket(transition, state.round_number)
    else:
        transition.enter(Phase.LOCATING, "asking which round the job is in")
        transition.add(Purpose.ROUND_NUMBER, Key.ROUND, 0)


def on_early_join(transition: Transition, event: Join) -> None:
    """Keep the request until the running round's end is recorded.

    The store may be away, and the agent's own wait for the recording is over.
    """
    transition.set(next_join=event.node)


def on_round_ended(transition: Transition, event: Appeared) -> None:
    """The running round's end is recorded; an agent that has already asked for the next round joins it now."""
    on_ended(transition, event)
    node = transition.state.next_join
    if transition.state.phase is Phase.ENDED and node is not None:
        on_join(transition, Join(node))


def on_round_number(transition: Transition, value: int) -> None:
    """Read the state of the round that the hint names.

    Where no round has ended yet, get in line for the first round at once.  If that is sealed already, its seal says so.
    When a thousand nodes start a job, this saves each of them a read.
    """
    node = transition.node
    number = check_round(value)
    if number == 0 and not node.declined:
        transition.set(is_located=True)
        take_ticket(transition, 0)
    else:
        _read_round(transition, number)


def _read_round(transition: Transition, number: int) -> None:
    transition.set(round_number=number)
    numbers = (number - 1, number) if number > 0 else (number,)
    transition.get(Purpose.ROUND_STATE, [key for n in numbers for key in (Key.sealed(n), Key.ended(n))])


def _search_round(transition: Transition, search: RoundSearch) -> None:
    """Rounds end one after the other: with each read at least half of what may be the job's round is ruled out."""
    transition.set(search=search)
    _read_round(transition, search.next_number())


def on_round_state(transition: Transition, values: list[bytes | None]) -> None:
    number = transition.state.round_number
    if number > 0:
        before_sealed, before_ended = values[:2]
        if before_ended is None or before_sealed is None:
            # The hint is too high: its increment was retried, or another program wrote it.
            _search_round(transition, transition.state.search.below(number))
            return
        end = decode_end(Key.ended(number - 1), before_ended)
        if end.verdict.is_terminal:  # the writer of an end raises the hint, whatever the verdict
            transition.close_job(end)
            return
        summary = read_summary(number - 1, decode_seal(number - 1, before_sealed))
        transition.set(previous=PreviousRound(summary, end))
    sealed, ended = values[-2:]
    if ended is not None:
        end = decode_end(Key.ended(number), ended)
        if end.verdict.is_terminal:
            transition.close_job(end)
        else:
            _search_round(transition, transition.state.search.above(number))
        return
    transition.set(is_located=True)
    if sealed is not None:
        seal = decode_seal(number, sealed)
        transition.set(previous=PreviousRound(read_summary(number, seal), seal=read_seal(number, seal)))
        number += 1
    take_ticket(transition, number)


# --- ticketing ------------------------------------------------------------------------------------------------------


def on_ticket(transition: Transition, value: int) -> None:
    state = transition.state
    ticket = check_tickets(Key.tickets(state.round_number), value, low=1)
    transition.set(ticket=ticket)
    transition.put(Purpose.RECORD, Key.node(state.round_number, ticket), encode(transition.node))


def on_record(transition: Transition, value: None) -> None:
    state = transition.state
    if state.node is not None and state.node.declined:
        transition.leave_job(HeartbeatState.LEFT)
        return
    timeouts = state.settings.timeouts
    transition.set(
        next_heartbeat_at=transition.now + timeouts.heartbeat_interval,
        standing=Standing(transition.now),  # no heartbeat that the others may read was sent before
    )
    if state.previous is None or state.previous.ended is not None:
        begin_round(transition)
        return
    summary = state.previous.summary
    reason = (
        f"round {summary.round_number} runs with {summary.group_world_size} of at most {summary.max_nodes} "
        "node(s); standing by for the next one"
    )
    settle_until = transition.now + _MOST_SETTLE_PERIODS * timeouts.settle_timeout
    standby = Standby(settle_until, claimed_key=_claimed_key(state, summary))
    transition.enter(Phase.STANDBY, reason, join_deadline=None, standby=standby)
    transition.emit(StandingBy(reason))
    transition.wait(Key.ended(summary.round_number))
    if state.ticket == state.leader:
        count_waiting_nodes(transition)
        if summary.group_world_size >= summary.max_nodes:
            transition.read_heartbeats()  # only a loss makes room: if the members are lost, their lease begins now


# --- standby --------------------------------------------------------------------------------------------------------


def _claimed_key(state: State, summary: RoundSummary) -> str | None:
    """Return the heartbeat of the member whose rank this node claims, which may be alive; ``None`` without one.

    Where the number of nodes is fixed, each rank belongs to one machine.
    """
    node, settings = state.node, state.settings
    assert node is not None
    rank = node.rank_hint
    if rank is None or node.previous_round is not None or settings.min_nodes != settings.max_nodes:
        return None
    return Key.rank_heartbeat(summary.round_number, rank) if rank < summary.group_world_size else None


def _give_up_taken_rank(transition: Transition, key: str) -> None:
    """Another node has this node's rank, and is alive: take the ticket back, and say so on both sides."""
    state, node = transition.state, transition.node
    heartbeat = state.watch.liveness.heartbeat(key)
    assert heartbeat is not None
    transition.put_heartbeat(Purpose.LEAVING_HEARTBEAT, HeartbeatState.LEFT)
    problem = (
        f"node rank {node.rank_hint} of the job {state.settings.run_id!r} is taken: the node {heartbeat.host} "
        f"has it and is running, and {node.name} claims it too. Give each node its own --node-rank; if these are "
        "two jobs, give each its own --rdzv-id and --rdzv-endpoint (or --master-port)"
    )
    transition.give_up(FailureKind.STATE, problem, transition.previous.summary.round_number)


def on_waiting_count(transition: Transition, value: int) -> None:
    """The first in line counts the waiting nodes; once arrivals have settled, it asks whether to begin a new round."""
    state = transition.state
    waiting = check_tickets(Key.tickets(state.round_number), value)
    summary, standby = transition.previous.summary, state.standby
    is_full = summary.group_world_size + waiting >= summary.max_nodes
    if waiting != standby.counted and not is_full and transition.now < standby.settle_until:
        count_at = transition.now + state.settings.timeouts.settle_timeout
        transition.set(standby=evolve(standby, counted=waiting, count_at=count_at))
        return
    transition.set(standby=evolve(standby, counted=waiting, count_at=None))
    transition.emit(AskRescale(summary, waiting))


def on_rescaled(transition: Transition, event: Rescaled) -> None:
    if event.worth_it:
        summary = transition.previous.summary
        reason = f"node {transition.node.name} joined; the round of {summary.group_world_size} re-forms"
        record_round_end(transition, summary, Cause.NODE_JOINED, Verdict.RESCALE, reason)


def on_previous_round_ended(transition: Transition, event: Appeared) -> None:
    state = transition.state
    if event.key != Key.ended(transition.previous.summary.round_number):
        return
    end = decode_end(event.key, event.value)
    if end.verdict.is_terminal:
        transition.close_job(end)
        return
    transition.set(
        previous=evolve(transition.previous, ended=end),
        join_deadline=transition.now + state.settings.timeouts.join_timeout,
        standby=evolve(state.standby, count_at=None),
    )
    begin_reports(transition)
    begin_round(transition)


def on_standby_heartbeats(transition: Transition) -> None:
    """The first in line ends the running round if all its members are lost at once.

    Each node in line finds out whether the member whose rank it claims is alive.  This takes no time of its own: a gang
    that was killed and started again waits for one lease.
    """
    state = transition.state
    claimed_key = state.standby.claimed_key
    if claimed_key is not None:
        if state.watch.liveness.is_gone(claimed_key, state.settings.silence_limit):
            transition.set(standby=evolve(state.standby, claimed_key=None))
        elif state.watch.liveness.has_moved(claimed_key):
            _give_up_taken_rank(transition, claimed_key)
            return
    if state.ticket != state.leader:
        on_sealer_heartbeat(transition)
        return
    summary, liveness = transition.previous.summary, state.watch.liveness
    limit = silence_limit_of(state)
    ranks, counts = [], []
    members, number = range(summary.group_world_size), summary.round_number
    look_up_tickets(transition, number, transition.previous.seal.sealer, members)
    for rank in members:
        key = heartbeat_key_of(state, number, rank)
        if is_ticket_unknown(state, number, rank):
            return
        if liveness.silent_for(key) <= limit and not liveness.has_left(key):
            return
        heartbeat = liveness.heartbeat(key)
        if heartbeat is None or not heartbeat.state.is_done:
            ranks.append(rank)
            counts.append(
                LARGEST_COUNTER if liveness.has_left(key) else liveness.count_of(Key.rank_heartbeat(number, rank))
            )
    reason = f"all {summary.group_world_size} node(s) of round {summary.round_number} were lost"
    record_round_end(transition, summary, Cause.NODE_LOST, Verdict.RESCALE, reason, ranks, counts)
