"""What happens in every phase: deadlines, heartbeats, leaving, and calls that the store answers or fails.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from ..errors import FailureKind
from ..records import Cause, Verdict
from ..timeouts import HEARTBEATS_PER_READING
from ._liveness import HeartbeatState
from ._protocol import JOINING, Appeared, Call, Failed, Leave, Left, Phase, Purpose, Tick, Wait
from ._sealing import consider_sealing
from ._standing import check_standing
from ._state import Report, State
from ._transition import Transition, count_waiting_nodes, record_round_end, silence_limit_of
from ._waiting import report, watch_store_trouble

_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
#: An attempt that takes longer to fail proves nothing: this node was paused meanwhile.
_LONGEST_ATTEMPT_SECONDS = 12.0
#: Added to the end of a lease, so that the lease is over when the heartbeat is read.
_AFTER_LEASE_SECONDS = 0.001


# --- time -----------------------------------------------------------------------------------------------------------


def on_tick(transition: Transition, event: Tick) -> None:
    state, now = transition.state, transition.now

    def is_due(time: float | None) -> bool:
        return time is not None and now >= time

    if state.phase in JOINING and is_due(state.join_deadline):
        limit = state.settings.timeouts.join_timeout
        transition.give_up(FailureKind.TIMEOUT, f"no round was formed within {limit:g} s: {_why_no_round(state)}")
        return
    check_standing(transition)
    if is_due(state.trouble.retry_at):
        retry(transition)
    if is_due(state.report.at):
        report(transition)
    if is_due(state.standby.count_at):
        transition.set(standby=evolve(state.standby, count_at=None))
        count_waiting_nodes(transition)
    if is_due(transition.state.next_heartbeat_at):
        _send_heartbeat(transition)
    if is_due(state.watch.read_at):
        transition.set(watch=evolve(transition.state.watch, read_at=None))
        transition.read_heartbeats()
    if transition.state.phase is Phase.GATHERING and is_due(state.gathering.seal_at):
        consider_sealing(transition)


def on_closed_tick(transition: Transition, event: Tick) -> None:
    """Show that this node has not left yet; whether the store answers does not matter."""
    state = transition.state
    transition.set(next_heartbeat_at=transition.now + state.settings.timeouts.reading_interval)
    transition.put_heartbeat(Purpose.HEARTBEAT, HeartbeatState.DONE if state.is_done else HeartbeatState.RUNNING)


def _why_no_round(state: State) -> str:
    if state.trouble.since is not None:
        return f"the store could not be reached ({state.trouble.problem})"
    if state.phase is Phase.LOCATING:
        where = state.settings.endpoint or "the rendezvous endpoint"
        return (
            f"the store did not answer; make sure that what listens at {where} is the rendezvous store "
            "(--rdzv-endpoint, or --master-addr and --master-port)"
        )
    return state.reason


def _send_heartbeat(transition: Transition) -> None:
    state = transition.state
    transition.set(next_heartbeat_at=transition.now + state.settings.timeouts.heartbeat_interval)
    if Purpose.HEARTBEAT not in state.pending and Purpose.DONE_HEARTBEAT not in state.pending:
        word = HeartbeatState.DONE if state.is_done else HeartbeatState.RUNNING
        transition.put_heartbeat(Purpose.HEARTBEAT, word)
    if transition.state.heartbeat_count % HEARTBEATS_PER_READING and transition.now >= state.watch.eager_until:
        return
    transition.read_heartbeats()
    is_first_in_line = state.phase is Phase.STANDBY and state.ticket == state.leader
    is_asking = Purpose.WAITING_COUNT in state.pending or Purpose.ROUND_END in state.pending
    if is_first_in_line and state.standby.count_at is None and not is_asking:
        count_waiting_nodes(transition)


def on_heartbeats(
    judge: Callable[[Transition], None] | None = None, appeared: Callable[[Transition, Appeared], None] | None = None
) -> Callable[[Transition, Any], None]:
    """Return the handler of heartbeats that were read: note them, then have the phase's own ``judge`` look at them.

    Arguments:
        appeared: takes the key that this node waits for, if it was read along with them and is there.
    """

    def handler(transition: Transition, values: list[bytes | None]) -> None:
        state, now = transition.state, transition.now
        found = dict(zip(state.pending[Purpose.HEARTBEATS].keys, values, strict=True))
        awaited, value = state.waiting_for, None
        if appeared is not None and awaited is not None:
            value = found.pop(awaited, None)
        keys, interval = tuple(found), state.settings.timeouts.reading_interval
        liveness = state.watch.liveness.after_reading(found, now, interval)
        transition.set(watch=evolve(state.watch, liveness=liveness, is_reading=False))
        if appeared is not None and awaited is not None and value is not None:
            transition.set(waiting_for=None)  # the wait is not interrupted: it ends by itself, and tells nothing new
            appeared(transition, Appeared(awaited, value))
            return
        if judge is not None:
            judge(transition)
        # Read again when the lease of a silent node is over, rather than with the next heartbeat.
        watch = transition.state.watch
        expiry = watch.liveness.next_expiry(keys, now, interval, silence_limit_of(transition.state))
        read_at = None if expiry is None else expiry + _AFTER_LEASE_SECONDS
        transition.set(watch=evolve(watch, read_at=read_at))

    return handler


# --- leaving --------------------------------------------------------------------------------------------------------


def on_leave(transition: Transition, event: Leave) -> None:
    """Leave; a node that runs ends the round for the others first, unless its own part in it is done."""
    state = transition.state
    if state.node is not None and state.node.declined and state.phase in JOINING:
        return  # it came only to say why it declines, and leaves once that is written
    ending = state.pending.get(Purpose.ROUND_END)
    if state.phase is Phase.RUNNING and ending is not None:
        transition.emit(ending)  # it may never have arrived, and says more than that this node leaves
    elif state.phase is Phase.RUNNING and not state.is_done:
        reason, ranks = f"node {transition.node.name} left", (transition.assignment.group_rank,)
        record_round_end(transition, transition.summary, Cause.NODE_LEFT, Verdict.RESCALE, reason, ranks)
    transition.leave_job(HeartbeatState.DONE_AND_LEFT if state.is_done else HeartbeatState.LEFT)


def on_left(transition: Transition, value: None) -> None:
    """The last heartbeat was written."""
    transition.emit(Left())


def on_not_left(transition: Transition, event: Failed) -> None:
    """The last heartbeat could not be written; that an earlier call has failed means nothing for it."""
    if event.call is not None and event.call.purpose is Purpose.LEAVING_HEARTBEAT:
        transition.emit(Left())


# --- store calls ----------------------------------------------------------------------------------------------------


def note_answer(transition: Transition) -> None:
    """The store has answered: its trouble is over."""
    trouble = transition.state.trouble
    if trouble.since is not None and transition.state.phase in (Phase.RUNNING, Phase.ENDED):
        transition.set(report=Report())
    if trouble.since is not None or trouble.attempts or trouble.tried_at is not None:
        transition.set(trouble=evolve(trouble, since=None, attempts=0, tried_at=None))


def forget_call(transition: Transition, call: Call) -> None:
    """Forget a call that was answered, unless a call of the same purpose was made meanwhile."""
    pending = transition.state.pending
    if pending.get(call.purpose) is call:
        transition.set(pending={purpose: other for purpose, other in pending.items() if purpose is not call.purpose})


def on_failed(transition: Transition, event: Failed) -> None:
    state, now = transition.state, transition.now
    trouble, timeouts = state.trouble, state.settings.timeouts
    since = now if trouble.since is None else trouble.since
    limit = timeouts.store_outage_timeout
    if event.lost:
        transition.give_up(FailureKind.LOST, event.problem)
    elif state.phase not in JOINING and now - since >= limit and _has_just_tried(state, event, now):
        transition.give_up(FailureKind.UNAVAILABLE, f"the store could not be reached for {limit:g} s: {event.problem}")
    elif event.call is None or state.pending.get(event.call.purpose) == event.call:
        purpose = event.call.purpose if event.call is not None else Purpose.WAIT
        # At most two heartbeats: once the store is back, others judge this node within a few.
        pause = min(_RETRY_SECONDS[min(trouble.attempts, len(_RETRY_SECONDS) - 1)], 2 * timeouts.heartbeat_interval)
        changed = evolve(
            trouble,
            since=since,
            problem=event.problem,
            failed=trouble.failed if purpose in trouble.failed else (*trouble.failed, purpose),
            retry_at=now + pause if trouble.retry_at is None else trouble.retry_at,
        )
        transition.set(trouble=changed)
        watch_store_trouble(transition)


def _has_just_tried(state: State, event: Failed, now: float) -> bool:
    """Return whether the last attempt shows that the store is away *now*; a node that was paused tries once more."""
    tried_at = state.trouble.tried_at
    if tried_at is not None and event.sent_at is not None and event.sent_at < tried_at:
        return False  # a call from before the pause
    return tried_at is not None and now - tried_at <= _LONGEST_ATTEMPT_SECONDS


def retry(transition: Transition) -> None:
    """Repeat what failed; instead of a heartbeat that failed, send the next one: the others may wait for it."""
    state, trouble = transition.state, transition.state.trouble
    attempts = trouble.attempts + 1
    transition.set(trouble=evolve(trouble, failed=(), retry_at=None, attempts=attempts, tried_at=transition.now))
    for purpose in trouble.failed:
        call = state.pending.get(purpose)
        if purpose is Purpose.WAIT:
            if state.waiting_for is not None:
                transition.emit(Wait(state.waiting_for))
        elif purpose is Purpose.HEARTBEAT or purpose is Purpose.HEARTBEATS:
            if call is not None:
                forget_call(transition, call)
            if purpose is Purpose.HEARTBEATS:
                transition.set(watch=evolve(transition.state.watch, is_reading=False))
            elif state.next_heartbeat_at is not None:
                transition.set(next_heartbeat_at=transition.now)
        elif call is not None:
            transition.emit(call)
