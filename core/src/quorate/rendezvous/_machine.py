"""The rendezvous protocol of one node, as a pure state machine: ``step(state, input, now)``.

Theory of operation.  A job is a row of rounds, and a round has two write-once keys::

    gather ──► n/sealed ──► workers run ──► n/ended {cause, verdict, reason} ──► round n+1, or the job's end

To join, a node takes a ticket and writes its record.  The node with the lowest live ticket is the *sealer*.  It alone
reads the records, decides ranks, writes one small assignment per node and then creates ``n/sealed``, the commit point.
All other nodes sit in one blocking wait on ``n/sealed`` and then read their own assignment.  If the sealer's heartbeat
stops, the next ticket tries.  ``create`` lets one node win, and assignments are kept per sealer, so that those of a
sealer that lost are never read.

While a round runs, every node sits in one blocking wait on ``n/ended``; the first node with a reason creates it.  The
lowest live group rank reads all heartbeats, the others watch only that node.  A node that comes late takes a ticket of
round n+1 at once; the first of these ends round n if a larger round is wanted.

No I/O, no clock, no threads, no randomness here.  ``TABLE`` is the whole machine; its handlers are in ``_joining``,
``_sealing``, ``_running``, ``_standing`` and ``_every_phase``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

from attrs import frozen

from ..errors import FailureKind, StoreCorruptError
from . import _every_phase, _joining, _member_tickets, _running, _sealing, _standing, _waiting
from ._protocol import (
    FINAL,
    JOINING,
    Appeared,
    Done,
    End,
    Failed,
    Input,
    Join,
    Leave,
    Ordered,
    Phase,
    Purpose,
    Reply,
    Rescaled,
    StopWaiting,
    Tick,
)
from ._state import State, Step
from ._transition import Transition

#: An input's class; for a reply, the purpose of the call that it answers.
Trigger = type[Any] | Purpose
Handler = Callable[[Transition, Any], None]


@final
@frozen
class Rule:
    """In ``phase``, ``trigger`` is handled by ``handler``, which stays in the phase or enters one of ``targets``."""

    phase: Phase
    trigger: Trigger
    handler: Handler
    targets: frozenset[Phase] = frozenset()


def _rule(phase: Phase, trigger: Trigger, handler: Handler, *targets: Phase) -> Rule:
    return Rule(phase, trigger, handler, frozenset(targets))


def _rules(phases: Iterable[Phase], trigger: Trigger, handler: Handler, *targets: Phase) -> tuple[Rule, ...]:
    return tuple(_rule(phase, trigger, handler, *targets) for phase in phases)


IDLE, LOCATING, TICKETING, STANDBY = Phase.IDLE, Phase.LOCATING, Phase.TICKETING, Phase.STANDBY
GATHERING, SEALING, AWAITING = Phase.GATHERING, Phase.SEALING, Phase.AWAITING
RUNNING, ENDED = Phase.RUNNING, Phase.ENDED
CLOSED, LEFT, FAILED = Phase.CLOSED, Phase.LEFT, Phase.FAILED
_ACTIVE = [phase for phase in Phase if phase not in FINAL and phase is not IDLE]
_on_heartbeats = _every_phase.on_heartbeats
# Together with heartbeats a node reads the key that it waits for, which may lead to the same phases as the wait's end.
_on_standby_heartbeats = _on_heartbeats(_joining.on_standby_heartbeats, _joining.on_previous_round_ended)
_on_sealer_heartbeat = _on_heartbeats(_sealing.on_sealer_heartbeat, _sealing.on_sealed)
_on_member_heartbeats = _on_heartbeats(_running.on_member_heartbeats, _joining.on_round_ended)

#: The whole machine.  What is not listed changes nothing.  Beside its targets, every handler may lead to ``FAILED``:
#: the store may hold what is not readable.
TABLE: tuple[Rule, ...] = (
    # phase, trigger, handler, targets
    _rule(IDLE, Join, _joining.on_join, LOCATING),
    _rule(IDLE, Leave, _every_phase.on_leave, LEFT),
    #
    _rule(LOCATING, Purpose.ROUND_NUMBER, _joining.on_round_number, TICKETING),
    _rule(LOCATING, Purpose.ROUND_STATE, _joining.on_round_state, TICKETING, CLOSED),
    #
    _rule(TICKETING, Purpose.TICKET, _joining.on_ticket),
    _rule(TICKETING, Purpose.RECORD, _joining.on_record, GATHERING, AWAITING, STANDBY, LEFT),
    #
    _rule(STANDBY, Purpose.WAITING_COUNT, _joining.on_waiting_count),
    _rule(STANDBY, Purpose.MEMBER_TICKETS, _member_tickets.on_tickets),
    _rule(STANDBY, Rescaled, _joining.on_rescaled),
    _rule(STANDBY, Appeared, _joining.on_previous_round_ended, GATHERING, AWAITING, CLOSED),
    _rule(STANDBY, Purpose.HEARTBEATS, _on_standby_heartbeats, GATHERING, AWAITING, CLOSED),
    #
    _rule(GATHERING, Purpose.TICKET_COUNT, _sealing.on_ticket_count, SEALING),
    _rule(GATHERING, Purpose.RECORDS, _sealing.on_records, SEALING),
    _rule(GATHERING, Appeared, _sealing.on_arrival),
    _rule(GATHERING, Purpose.HEARTBEATS, _on_heartbeats(_sealing.on_gathered_heartbeats), AWAITING),
    _rule(GATHERING, Tick, _every_phase.on_tick, SEALING, FAILED),
    #
    _rule(SEALING, Ordered, _sealing.on_ordered),
    _rule(SEALING, Purpose.ASSIGNMENTS, _sealing.on_assignments_written),
    _rule(SEALING, Purpose.SEAL, _sealing.on_seal_created, AWAITING),
    #
    _rule(AWAITING, Appeared, _sealing.on_sealed, FAILED),
    _rule(AWAITING, Purpose.ASSIGNMENT, _sealing.on_assignment, RUNNING, TICKETING, CLOSED),
    _rule(AWAITING, Purpose.WHO_IS_HERE, _waiting.on_note),
    _rule(AWAITING, Purpose.HEARTBEATS, _on_sealer_heartbeat, GATHERING),
    #
    _rule(RUNNING, Join, _joining.on_early_join),
    _rule(RUNNING, End, _running.on_end),
    _rule(RUNNING, Done, _running.on_done),
    _rule(RUNNING, Purpose.HEARTBEAT, _standing.on_acknowledged),
    _rule(RUNNING, Purpose.STANDING, _standing.on_standing),
    _rule(RUNNING, Purpose.DONE_HEARTBEAT, _running.on_done_heartbeat),
    _rule(RUNNING, Purpose.DONE_COUNT, _running.on_done_count),
    _rule(RUNNING, Purpose.DONE_CHECK, _running.on_done_check),
    _rule(RUNNING, Purpose.HEARTBEATS, _on_member_heartbeats, ENDED, TICKETING, CLOSED),
    _rule(RUNNING, Purpose.MEMBER_TICKETS, _member_tickets.on_tickets),
    _rule(RUNNING, Appeared, _joining.on_round_ended, ENDED, TICKETING, CLOSED),
    #
    _rule(ENDED, Join, _joining.on_join, TICKETING),
    _rule(ENDED, Purpose.HEARTBEAT, _standing.on_acknowledged_late),
    #
    _rule(CLOSED, Tick, _every_phase.on_closed_tick),
    #
    _rule(LEFT, Purpose.LEAVING_HEARTBEAT, _every_phase.on_left),
    _rule(LEFT, Failed, _every_phase.on_not_left),
    # every phase between IDLE and the end
    *_rules(_ACTIVE, Leave, _every_phase.on_leave, LEFT),
    *_rules(_ACTIVE, Failed, _every_phase.on_failed, FAILED),
    *_rules(_ACTIVE, Purpose.ROUND_END, _running.on_end_recorded),
    *_rules([phase for phase in _ACTIVE if phase is not GATHERING], Tick, _every_phase.on_tick, FAILED),
    *_rules([*JOINING, STANDBY], StopWaiting, _waiting.on_stop_waiting, FAILED),
    *_rules([STANDBY, GATHERING, SEALING, AWAITING], Purpose.HEARTBEAT, _standing.on_acknowledged_early),
    *_rules([LOCATING, TICKETING, SEALING, ENDED], Purpose.HEARTBEATS, _on_heartbeats()),
)

#: The table by phase and trigger.
RULES: dict[tuple[Phase, Trigger], Rule] = {(rule.phase, rule.trigger): rule for rule in TABLE}
assert len(RULES) == len(TABLE), "the table lists a phase and a trigger twice"


def step(state: State, event: Input, now: float) -> Step:
    """Take one input at ``now`` (monotonic seconds); return the new state, the commands and the reason."""
    transition = Transition(state, now)
    rule = RULES.get((state.phase, _trigger(event)))
    try:
        if isinstance(event, Reply):
            _take_reply(transition, event, rule)
        elif rule is not None:
            rule.handler(transition, event)
    except StoreCorruptError as error:
        transition.give_up(FailureKind.STATE, str(error))
    return Step(transition.state, tuple(transition.commands), transition.state.reason)


def is_listed(before: Phase, event: Input, after: Phase) -> bool:
    """Return whether the table lists that ``event`` leads from ``before`` to ``after``."""
    if after is before:
        return True
    rule = RULES.get((before, _trigger(event)))
    return rule is not None and (after in rule.targets or after is FAILED)


def _trigger(event: Input) -> Trigger:
    return event.call.purpose if isinstance(event, Reply) else type(event)


def _take_reply(transition: Transition, event: Reply, rule: Rule | None) -> None:
    call = transition.state.pending.get(event.call.purpose)
    if call is None or call != event.call:
        return  # the answer to a call of an earlier phase
    _every_phase.note_answer(transition)
    if rule is not None:
        rule.handler(transition, event.value)
    _every_phase.forget_call(transition, call)
