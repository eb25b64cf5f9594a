"""Phases ``gathering``, ``sealing`` and ``awaiting``: how a round is agreed upon.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from attrs import evolve

from ..errors import FailureKind, StoreCorruptError, UsageError
from ..records import Assignment, RoundEnd, RoundSummary, Verdict
from ..text import printable
from ._gather import evaluate, live_nodes, plugin_warnings
from ._member_tickets import encode_tickets
from ._protocol import Appeared, Key, Ordered, OrderNodes, PeerDeclined, Phase, Purpose
from ._ranks import assign_ranks, previous_order, select_nodes
from ._running import enter_round
from ._same_job import difference_warnings
from ._state import PreviousRound, Seal, State
from ._transition import Transition, check_tickets, decode_seal, read_seal, read_summary, take_ticket
from ._waiting import note_who_is_here
from ._wire import decode_assignment, decode_end, decode_node, encode, encode_object

_MOST_MISSING = 16
_MOST_READ_AT_ONCE = 1 << 13
_LONGEST_REFUSAL = 4096


def begin_round(transition: Transition) -> None:
    """With a ticket in hand: gather the others, or wait for the seal of the node that does."""
    state, now = transition.state, transition.now
    transition.set(gathering=evolve(state.gathering, since=now, last_arrival=now))
    if state.ticket <= state.leader:
        _become_sealer(transition)
    else:
        _await_seal(transition, f"waiting for ticket {state.leader} to seal round {state.round_number}")


def _become_sealer(transition: Transition) -> None:
    transition.enter(Phase.GATHERING, f"gathering nodes for round {transition.state.round_number}")
    transition.wait(None)
    _count_tickets(transition)
    transition.read_heartbeats()


def _await_seal(transition: Transition, reason: str, is_sealed: bool = False) -> None:
    transition.enter(Phase.AWAITING, reason)
    transition.wait(Key.sealed(transition.state.round_number))
    if is_sealed:
        transition.read_heartbeats()


# --- gathering ------------------------------------------------------------------------------------------------------


def _count_tickets(transition: Transition) -> None:
    transition.add(Purpose.TICKET_COUNT, Key.tickets(transition.state.round_number), 0)


def _look_for_nodes(transition: Transition) -> None:
    pending = transition.state.pending
    if Purpose.TICKET_COUNT not in pending and Purpose.RECORDS not in pending:
        _count_tickets(transition)


def _unknown_tickets(state: State) -> list[int]:
    """Return the first tickets that were taken and whose nodes are not known yet."""
    gathering = state.gathering
    unknown = (ticket for ticket in range(1, gathering.tickets + 1) if ticket not in gathering.nodes)
    return list(islice(unknown, _MOST_READ_AT_ONCE))


def on_ticket_count(transition: Transition, value: int) -> None:
    gathering = transition.state.gathering
    count = check_tickets(Key.tickets(transition.state.round_number), value)
    transition.set(gathering=evolve(gathering, tickets=max(gathering.tickets, count)))
    unknown = _unknown_tickets(transition.state)
    if unknown:
        number = transition.state.round_number
        transition.get(Purpose.RECORDS, [Key.node(number, ticket) for ticket in unknown])
    else:
        consider_sealing(transition)


def on_records(transition: Transition, values: list[bytes | None]) -> None:
    state = transition.state
    nodes = dict(state.gathering.nodes)
    for ticket, value in zip(_unknown_tickets(state), values, strict=False):
        if value is not None:
            nodes[ticket] = node = decode_node(Key.node(state.round_number, ticket), value)
            if node.declined:
                text = f"node {node.name} does not join round {state.round_number}: {node.declined}"
                transition.emit(PeerDeclined(text))
    if len(nodes) > len(state.gathering.nodes):
        transition.set(gathering=evolve(state.gathering, nodes=nodes, last_arrival=transition.now))
    consider_sealing(transition)


def on_arrival(transition: Transition, event: Appeared) -> None:
    transition.set(waiting_for=None)
    _look_for_nodes(transition)


def on_gathered_heartbeats(transition: Transition) -> None:
    number = transition.state.round_number
    if Key.sealed(number) in transition.state.pending[Purpose.HEARTBEATS].keys:  # it was read while gathering
        transition.set(gathering=evolve(transition.state.gathering, has_looked=True))
    if transition.state.watch.liveness.exists(Key.sealed(number)):
        transition.set(gathering=evolve(transition.state.gathering, seal_at=None))
        _await_seal(transition, f"round {number} was sealed by another node", is_sealed=True)
    else:
        _look_for_nodes(transition)


def consider_sealing(transition: Transition) -> None:
    """Seal if the round may be sealed now; else wait for the next node."""
    state = transition.state
    readiness = evaluate(state, transition.now)
    transition.set(reason=readiness.reason, gathering=evolve(state.gathering, seal_at=readiness.ask_again_at))
    if readiness.rule.allows_sealing:
        _start_sealing(transition)
        return
    note_who_is_here(transition)
    unknown = _unknown_tickets(state)
    tickets = state.gathering.tickets
    # Far below min_nodes no arrival decides anything, so only every few arrivals wake the sealer.
    next_ticket = unknown[0] if unknown else tickets + 1 + max(0, state.settings.min_nodes - tickets) // 16
    expected = Key.node(state.round_number, next_ticket)
    if state.waiting_for != expected:
        transition.wait(expected)


# --- sealing --------------------------------------------------------------------------------------------------------


def _start_sealing(transition: Transition) -> None:
    state = transition.state
    nodes = list(live_nodes(state).values())
    number = state.previous.summary.round_number if state.previous is not None else None
    members, _ = select_nodes(nodes, number, state.settings.max_nodes)
    transition.enter(Phase.SEALING, state.reason, gathering=evolve(state.gathering, seal_at=None))
    transition.wait(None)
    transition.emit(OrderNodes(tuple(members), tuple(previous_order(nodes, number))))


def on_ordered(transition: Transition, event: Ordered) -> None:
    state = transition.state
    by_id = {node.node_id: (ticket, node) for ticket, node in state.gathering.nodes.items()}
    try:
        if event.problem:
            raise UsageError(event.problem)
        members = [by_id[node_id][1] for node_id in event.order if node_id in by_id]
        assignments = assign_ranks(
            members,
            event.order,
            round_number=state.round_number,
            restart_count=_restart_count(state),
            warnings=(*plugin_warnings(members), *difference_warnings(members)),
            missing=_missing(state),
        )
    except UsageError as error:
        _seal(transition, {"refusal": str(error)})
        return
    first = assignments[event.order[0]]
    settings = state.settings
    summary = RoundSummary(
        state.round_number,
        first.group_world_size,
        first.world_size,
        settings.min_nodes,
        settings.max_nodes,
        first.restart_count,
    )
    tickets = [by_id[node_id][0] for node_id in event.order]
    transition.set(summary=summary, seal=Seal(state.ticket, tickets[0]))
    values = encode_tickets(state.round_number, state.ticket, tickets) | {
        Key.assignment(state.round_number, state.ticket, by_id[node_id][0]): encode(assignment)
        for node_id, assignment in assignments.items()
    }
    transition.put_many(Purpose.ASSIGNMENTS, values)


def on_assignments_written(transition: Transition, value: None) -> None:
    summary = transition.summary
    _seal(
        transition,
        {
            "nodes": summary.group_world_size,
            "world_size": summary.world_size,
            "min_nodes": summary.min_nodes,
            "max_nodes": summary.max_nodes,
            "restart_count": summary.restart_count,
            "first_ticket": transition.state.seal.first_ticket,
        },
    )


def _seal(transition: Transition, fields: Mapping[str, Any]) -> None:
    value = encode_object("sealed", {"sealer": transition.state.ticket, **fields})
    transition.create(Purpose.SEAL, Key.sealed(transition.state.round_number), value)


def refusal_of(ticket: int, reason: str, kind: FailureKind) -> bytes:
    """Return the seal of a round that will not be formed."""
    return encode_object("sealed", {"sealer": ticket, "refusal": reason, "failure": kind.value})


def on_seal_created(transition: Transition, is_writer: bool) -> None:
    """The seal exists now; read it like every other node, since another node may have written it."""
    _await_seal(transition, f"round {transition.state.round_number} is sealed")


def _restart_count(state: State) -> int:
    """Return the job's restarts so far.

    When a node dies, the workers of other nodes often fail before its lease is over, and the round then ends as if they
    were the cause.  Losing a node costs no restart: a member that does not come back takes the restart off again.
    """
    previous = state.previous
    if previous is None or previous.ended is None:
        return 0
    ended = previous.ended
    if ended.verdict is Verdict.RESTART and _absent(state, previous):
        return min(ended.restart_count, previous.summary.restart_count)
    return ended.restart_count


def _absent(state: State, previous: PreviousRound) -> list[int]:
    """Return the group ranks of the round before whose nodes are not here."""
    number = previous.summary.round_number
    nodes = state.gathering.nodes.values()
    back = {node.previous_rank for node in nodes if node.previous_round == number and not node.declined}
    return [rank for rank in range(previous.summary.group_world_size) if rank not in back]


def _missing(state: State) -> tuple[str, ...]:
    """Return a sentence for each absent node of the round before that its recorded end does not name.

    One of them may be the real cause of the end, which its writer did not know.
    """
    previous = state.previous
    if previous is None or previous.ended is None:
        return ()
    sentences = []
    for rank in _absent(state, previous):
        if rank in previous.ended.lost_ranks:
            continue
        heartbeat = state.watch.liveness.heartbeat(Key.rank_heartbeat(previous.summary.round_number, rank))
        host = f" ({heartbeat.host})" if heartbeat is not None and heartbeat.host else ""
        how = "left" if heartbeat is not None and heartbeat.state.has_left else "was lost"
        sentences.append(f"group rank {rank}{host} {how}")
    return tuple(sentences[:_MOST_MISSING])


# --- awaiting -------------------------------------------------------------------------------------------------------


def on_sealed(transition: Transition, event: Appeared) -> None:
    state = transition.state
    number = state.round_number
    if event.key != Key.sealed(number) or Purpose.ASSIGNMENT in state.pending:
        return
    seal = decode_seal(number, event.value)
    if seal.get("refusal"):
        kind = FailureKind.TIMEOUT if seal.get("failure") == FailureKind.TIMEOUT else FailureKind.STATE
        transition.give_up(kind, printable(str(seal["refusal"]), _LONGEST_REFUSAL))
        return
    transition.set(summary=read_summary(number, seal), seal=read_seal(number, seal), waiting_for=None)
    sealer = transition.state.seal.sealer
    transition.get(Purpose.ASSIGNMENT, [Key.assignment(number, sealer, state.ticket), Key.ended(number)])


def on_assignment(transition: Transition, values: list[bytes | None]) -> None:
    state = transition.state
    if values[0] is None:  # the seal left this node out: it is first in line for the next round
        transition.set(previous=PreviousRound(transition.summary, seal=state.seal), summary=None)
        take_ticket(transition, state.round_number + 1)
    else:
        key = state.pending[Purpose.ASSIGNMENT].keys[0]
        assignment = decode_assignment(key, values[0])
        problem = _problem_with(state, transition.summary, assignment)
        if problem:
            raise StoreCorruptError(key, problem)
        if values[1] is None:
            enter_round(transition, assignment)
        else:
            _join_after(transition, assignment, decode_end(Key.ended(state.round_number), values[1]))


def _join_after(transition: Transition, assignment: Assignment, end: RoundEnd) -> None:
    """The round is over before this node has started any worker in it: get in line for the next one."""
    state = transition.state
    if end.verdict.is_terminal:
        transition.close_job(end)
        return
    number = assignment.round_number
    transition.set(
        node=evolve(transition.node, previous_round=number, previous_rank=assignment.group_rank),
        previous=PreviousRound(transition.summary, end, state.seal),
        summary=None,
    )
    take_ticket(transition, number + 1)


def _problem_with(state: State, summary: RoundSummary, assignment: Assignment) -> str:
    """Return why an assignment is not this node's own in the sealed round, ``""`` if it is."""
    node = state.node
    assert node is not None
    own = (
        ("node_id", assignment.node_id, node.node_id),
        ("role", assignment.role, node.role),
        ("local_world_size", assignment.local_world_size, node.local_world_size),
        ("round_number", assignment.round_number, state.round_number),
        ("group_world_size", assignment.group_world_size, summary.group_world_size),
        ("world_size", assignment.world_size, summary.world_size),
        ("restart_count", assignment.restart_count, summary.restart_count),
    )
    for name, assigned, expected in own:
        if assigned != expected:
            return f"it is not this node's assignment: its {name} is {assigned!r:.80}, not {expected!r:.80}"
    if assignment.group_world_size > state.settings.max_nodes:
        return f"its round has {assignment.group_world_size} nodes, and this node allows {state.settings.max_nodes}"
    workers, role_size = assignment.local_world_size, assignment.role_world_size
    if (
        assignment.group_rank >= assignment.group_world_size
        or assignment.first_rank + workers > assignment.world_size
        or assignment.first_role_rank + workers > role_size
        or role_size > assignment.world_size
    ):
        return "its ranks do not lie within its sizes"
    if not assignment.master_addr.isprintable() or " " in assignment.master_addr:
        return "its master_addr is not an address"
    return ""


def on_sealer_heartbeat(transition: Transition) -> None:
    """Watch the ticket that should seal; if its heartbeat stops, watch the next one, and at last become the sealer."""
    state = transition.state
    if state.waiting_for is None:
        return  # the round is sealed, and this node reads its assignment
    leader = state.leader
    while leader < state.ticket:
        key = Key.ticket_heartbeat(state.round_number, leader)
        if not state.watch.liveness.is_gone(key, state.settings.silence_limit):
            break
        leader += 1
    if leader == state.leader:
        return
    # What was read of the lost node is kept: its successor must not take it in.
    transition.set(leader=leader)
    if leader == state.ticket and state.phase is Phase.AWAITING:
        _become_sealer(transition)
    else:
        transition.read_heartbeats()
