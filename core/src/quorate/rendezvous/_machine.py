"""The rendezvous protocol of one node, as a pure state machine: ``step(state, input, now)``.

Theory of operation.  A job is a row of rounds, and a round hangs on two write-once keys::

    gather ──► n/sealed ──► workers run ──► n/ended {cause, verdict, reason} ──► round n+1, or the job's end

To join, a node takes a ticket and writes its record.  The lowest live ticket is the *sealer*: it alone reads the
records, decides ranks, writes one small assignment per node under its own number and then creates ``n/sealed``, the commit
point.  Everyone else sits in one blocking wait on ``n/sealed`` and reads its own assignment.  If the sealer's heart stops,
the next ticket tries; ``create`` lets one win, and assignments are kept per sealer, so a loser's assignments are never read.

While a round runs, every node sits in one blocking wait on ``n/ended``; whoever first has a reason creates it.  The
lowest live group rank reads all heartbeats, the others watch only it.  Nodes that come late take a ticket of round
n+1 at once and are its first in line; the first of them ends round n if that is worth it.

No I/O, no clock, no threads, no randomness here.  ``_TABLE`` and ``_REPLIES`` are the whole machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import FailureKind, StoreCorruptError
from ..records import Cause, Verdict
from ._joining import (
    join,
    join_after,
    judge_standby,
    on_count,
    on_look_round,
    on_record,
    on_rescaled,
    on_ticket,
    on_waiting,
    previous_ended,
    round_ended,
)
from ._liveness import BeatState
from ._protocol import (
    FINAL,
    JOINING,
    Appeared,
    Done,
    End,
    Failed,
    Gone,
    Input,
    Join,
    Key,
    Leave,
    Ordered,
    Phase,
    Reply,
    Rescaled,
    Settings,
    State,
    Step,
    Tick,
    Wait,
)
from ._running import done, end, judge_members, on_check, on_done, on_end, on_mark
from ._sealing import (
    arrived,
    consider_sealing,
    judge_gathered,
    judge_sealer,
    on_ordered,
    on_records,
    on_scan,
    on_seal,
    on_seat,
    on_seats,
    sealed,
)
from ._transition import Transition, end_with, go_away, look, my_beat_key

__all__ = ["initial_state", "step"]

_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
#: No attempt takes longer than this to fail, unless this node was paused meanwhile, and has learnt nothing.
_LONGEST_ATTEMPT_SECONDS = 12.0


def initial_state(settings: Settings) -> State:
    """Return the state of a node that has not been asked for anything yet."""
    return State(settings)


def step(state: State, event: Input, now: float) -> Step:
    """Take one input at ``now`` (monotonic seconds) and return the new state, the commands and the reason."""
    transition = Transition(state, now)
    handler = _TABLE.get(type(event), {}).get(state.phase)
    if handler is not None:
        try:
            handler(transition, event)
        except StoreCorruptError as error:
            transition.give_up(FailureKind.STATE, str(error))
    return Step(transition.state, tuple(transition.commands), transition.state.reason)


def _tick(transition: Transition, event: Tick) -> None:
    state, now = transition.state, transition.now
    if state.phase in JOINING and state.join_deadline is not None and now >= state.join_deadline:
        limit = state.settings.join_timeout
        transition.give_up(FailureKind.TIMEOUT, f"no round was formed within {limit:g} s: {_hindrance(state)}")
        return
    if state.retry_at is not None and now >= state.retry_at:
        _retry(transition)
    if state.join_request_at is not None and now >= state.join_request_at:
        transition.set(join_request_at=None)
        transition.call("waiting", "add", Key.tickets(state.round_number), amount=0)
    if state.next_beat is not None and now >= state.next_beat:
        _beat(transition)
    if state.look_at is not None and now >= state.look_at:
        transition.set(look_at=None)
        look(transition)
    if transition.state.phase is Phase.GATHERING and state.seal_at is not None and now >= state.seal_at:
        consider_sealing(transition)


def _hindrance(state: State) -> str:
    """Say what kept the round from being formed: the store's silence, if it is silent, else who is missing."""
    if state.outage_since is not None:
        return f"the store could not be reached ({state.problem})"
    if state.phase is Phase.LOCATING:
        return "the store has not answered yet"
    return state.reason


def _beat(transition: Transition) -> None:
    state = transition.state
    transition.set(next_beat=transition.now + state.settings.heartbeat_interval)
    if "beat" not in state.pending and "mark" not in state.pending:
        word = BeatState.DONE if state.done else BeatState.RUN
        transition.call("beat", "put", my_beat_key(state), values=(transition.beat("", word),))
    look(transition)
    first_in_line = state.phase is Phase.STANDBY and state.ticket == state.leader and state.join_request_at is None
    if first_in_line and "waiting" not in state.pending and "end" not in state.pending:
        transition.call("waiting", "add", Key.tickets(state.round_number), amount=0)


def _on_look(transition: Transition, values: list[bytes | None]) -> None:
    state = transition.state
    call = state.pending["look"]
    interval = state.settings.heartbeat_interval
    transition.set(
        liveness=state.liveness.look(dict(zip(call.keys, values, strict=True)), transition.now, interval), looking=False
    )
    handler = _JUDGES.get(state.phase)
    if handler is not None:
        handler(transition)
    # Do not wait for the next beat to find a silent node's patience over; a hair later, so that it is over.
    expiry = transition.state.liveness.next_expiry(call.keys, transition.now, interval, state.settings.patience)
    transition.set(look_at=None if expiry is None else expiry + 0.001)


def _leave(transition: Transition, event: Leave) -> None:
    """Go away: end the round for the others, unless this node's part in it is done, and say so in the heartbeat."""
    state = transition.state
    if state.node is not None and state.node.declined and state.phase in JOINING:
        return  # it has come only to tell why it stays out, and goes when that is done
    said = state.pending.get("end")
    if state.phase is Phase.RUNNING and said is not None:
        transition.emit(said)  # it may never have arrived, and tells more than that this node goes
    elif state.phase is Phase.RUNNING and not state.done:
        assert state.node is not None
        assert state.assignment is not None
        reason = f"node {state.node.host or state.node.node_id} left"
        end_with(transition, Cause.NODE_LEFT, Verdict.RESCALE, reason, (state.assignment.group_rank,))
    go_away(transition, BeatState.BYE if state.done else BeatState.LEFT)


def _on_left(transition: Transition, value: Any) -> None:
    transition.emit(Gone())


def _trouble(transition: Transition, event: Failed) -> None:
    state, now = transition.state, transition.now
    since = now if state.outage_since is None else state.outage_since
    limit = state.settings.store_outage_timeout
    if event.lost:
        transition.give_up(FailureKind.LOST, event.problem)
    elif state.phase not in JOINING and now - since >= limit and _has_tried(state, now):
        transition.give_up(FailureKind.UNAVAILABLE, f"the store could not be reached for {limit:g} s: {event.problem}")
    elif event.call is None or state.pending.get(event.call.tag) == event.call:
        tag = event.call.tag if event.call is not None else "wait"
        failed = state.failed if tag in state.failed else (*state.failed, tag)
        # Never longer than a beat: once the store is back, others judge this node within a few of them.
        wait = min(_RETRY_SECONDS[min(state.attempt, len(_RETRY_SECONDS) - 1)], state.settings.heartbeat_interval)
        retry_at = now + wait if state.retry_at is None else state.retry_at
        transition.set(failed=failed, outage_since=since, problem=event.problem, retry_at=retry_at)


def _has_tried(state: State, now: float) -> bool:
    """Return whether the last attempt tells that the store is away now: a node that was paused tries once more."""
    return state.tried_at is not None and now - state.tried_at <= _LONGEST_ATTEMPT_SECONDS


def _left_in_trouble(transition: Transition, event: Failed) -> None:
    transition.emit(Gone())


def _retry(transition: Transition) -> None:
    """Do again what failed.  A beat is not repeated: the next one says more."""
    state = transition.state
    transition.set(failed=(), retry_at=None, attempt=state.attempt + 1, tried_at=transition.now)
    for tag in state.failed:
        if tag == "wait":
            if state.waiting_for is not None:
                transition.emit(Wait(state.waiting_for))
        elif tag in ("beat", "look"):
            transition.set(pending={k: v for k, v in transition.state.pending.items() if k != tag})
            if tag == "look":
                transition.set(looking=False)
        elif tag in state.pending:
            transition.emit(state.pending[tag])


def _reply(transition: Transition, event: Reply) -> None:
    state = transition.state
    if state.pending.get(event.call.tag) != event.call:
        return  # the answer to a question of an earlier phase
    tag = event.call.tag
    handler = _REPLIES.get(tag)
    if state.outage_since is not None or state.attempt or state.tried_at is not None:
        transition.set(outage_since=None, attempt=0, tried_at=None)
    if handler is not None and state.phase in handler[0]:
        handler[1](transition, event.value)
    # A handler may have asked the same question again: only forget the call that was answered.
    if transition.state.pending.get(tag) is state.pending[tag]:
        transition.set(pending={key: call for key, call in transition.state.pending.items() if key != tag})


_Handler = Callable[[Transition, Any], None]
_ACTIVE = frozenset(Phase) - FINAL - {Phase.IDLE}
_ROUND = frozenset({Phase.RUNNING, Phase.ENDED})

#: reply tag -> (phases in which it still matters, what it leads to)
_REPLIES: Mapping[str, tuple[frozenset[Phase], _Handler]] = {
    "count": (frozenset({Phase.LOCATING}), on_count),
    "look_round": (frozenset({Phase.LOCATING}), on_look_round),
    "ticket": (frozenset({Phase.TICKETING}), on_ticket),
    "record": (frozenset({Phase.TICKETING}), on_record),
    "waiting": (frozenset({Phase.STANDBY}), on_waiting),
    "scan": (frozenset({Phase.GATHERING}), on_scan),
    "records": (frozenset({Phase.GATHERING}), on_records),
    "assignments": (frozenset({Phase.SEALING}), on_seats),
    "seal": (frozenset({Phase.SEALING}), on_seal),
    "assignment": (frozenset({Phase.AWAITING}), on_seat),
    "mark": (frozenset({Phase.RUNNING}), on_mark),
    "done": (frozenset({Phase.RUNNING}), on_done),
    "check": (frozenset({Phase.RUNNING}), on_check),
    "end": (_ACTIVE, on_end),
    "look": (_ACTIVE, _on_look),
    "left": (frozenset({Phase.LEFT}), _on_left),
}

#: phase -> what follows from a look at heartbeats
_JUDGES: Mapping[Phase, Callable[[Transition], None]] = {
    Phase.AWAITING: judge_sealer,
    Phase.GATHERING: judge_gathered,
    Phase.STANDBY: judge_standby,
    Phase.RUNNING: judge_members,
}


def _in(phases: frozenset[Phase], handler: _Handler) -> dict[Phase, _Handler]:
    return dict.fromkeys(phases, handler)


#: input -> phase -> handler; whatever is not listed changes nothing
_TABLE: Mapping[type, Mapping[Phase, _Handler]] = {
    Join: {Phase.IDLE: join, Phase.RUNNING: join_after, Phase.ENDED: join},
    End: {Phase.RUNNING: end},
    Done: {Phase.RUNNING: done},
    Leave: dict.fromkeys(frozenset(Phase) - FINAL, _leave),
    Reply: dict.fromkeys(frozenset(Phase) - {Phase.CLOSED, Phase.FAILED}, _reply),
    Failed: {**_in(_ACTIVE, _trouble), Phase.LEFT: _left_in_trouble},
    Appeared: {
        Phase.STANDBY: previous_ended,
        Phase.GATHERING: arrived,
        Phase.AWAITING: sealed,
        Phase.RUNNING: round_ended,
    },
    Ordered: {Phase.SEALING: on_ordered},
    Rescaled: {Phase.STANDBY: on_rescaled},
    Tick: _in(_ACTIVE, _tick),
}
