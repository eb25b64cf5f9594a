"""Phases ``gathering``, ``sealing`` and ``awaiting``: how a round is agreed upon.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FailureKind, StoreCorruptError, UsageError
from ..records import RoundSummary, Verdict
from ._gather import evaluate, live_nodes, plugin_warnings
from ._protocol import (
    Appeared,
    Key,
    NodeDeclined,
    Ordered,
    OrderNodes,
    Phase,
    Previous,
    State,
)
from ._ranks import assign_ranks, previous_order, select_nodes
from ._running import enter_round
from ._transition import Transition, look, summary_of, take_ticket
from ._wire import decode_assignment, decode_node, decode_object, encode, encode_object


def gather(transition: Transition) -> None:
    state = transition.state
    transition.set(gather_since=transition.now, last_arrival=transition.now)
    if state.ticket <= state.leader:
        _become_sealer(transition)
    else:
        transition.enter(Phase.AWAITING, f"waiting for ticket {state.leader} to seal round {state.round_number}")
        transition.wait(Key.sealed(state.round_number))


def _become_sealer(transition: Transition) -> None:
    transition.enter(Phase.GATHERING, f"gathering nodes for round {transition.state.round_number}")
    transition.wait(None)
    transition.call("scan", "add", Key.tickets(transition.state.round_number), amount=0)
    look(transition)


def on_scan(transition: Transition, value: Any) -> None:
    state = transition.state
    transition.set(tickets=max(state.tickets, int(value)))
    unknown = [ticket for ticket in range(1, transition.state.tickets + 1) if ticket not in state.nodes]
    if unknown:
        transition.call("records", "get", *(Key.node(state.round_number, ticket) for ticket in unknown))
    else:
        consider_sealing(transition)


def on_records(transition: Transition, values: list[bytes | None]) -> None:
    state = transition.state
    unknown = [ticket for ticket in range(1, state.tickets + 1) if ticket not in state.nodes]
    nodes = dict(state.nodes)
    for ticket, value in zip(unknown, values, strict=False):
        if value is not None:
            nodes[ticket] = node = decode_node(Key.node(state.round_number, ticket), value)
            if node.declined:
                name = node.host or node.node_id
                transition.emit(NodeDeclined(f"node {name} does not join round {state.round_number}: {node.declined}"))
    if len(nodes) > len(state.nodes):
        transition.set(nodes=nodes, last_arrival=transition.now)
    consider_sealing(transition)


def consider_sealing(transition: Transition) -> None:
    state = transition.state
    readiness = evaluate(state, transition.now)
    transition.set(reason=readiness.reason, seal_at=readiness.ask_again_at)
    if readiness.ready:
        _start_sealing(transition)
        return
    missing = [ticket for ticket in range(1, state.tickets + 1) if ticket not in state.nodes]
    # Far from min_nodes nothing can be decided, so a crowd that trickles in need not wake the sealer each time.
    following = state.tickets + 1 + max(0, state.settings.min_nodes - state.tickets) // 16
    expected = Key.node(state.round_number, missing[0] if missing else following)
    if state.waiting_for != expected:
        transition.wait(expected)


def arrived(transition: Transition, event: Appeared) -> None:
    transition.set(waiting_for=None)
    if "scan" not in transition.state.pending and "records" not in transition.state.pending:
        transition.call("scan", "add", Key.tickets(transition.state.round_number), amount=0)


def _start_sealing(transition: Transition) -> None:
    state = transition.state
    nodes = list(live_nodes(state).values())
    number = state.previous.summary.round_number if state.previous is not None else None
    members, _ = select_nodes(nodes, number, state.settings.max_nodes)
    transition.enter(Phase.SEALING, state.reason, seal_at=None)
    transition.wait(None)
    transition.emit(OrderNodes(tuple(members), tuple(previous_order(nodes, number))))


def on_ordered(transition: Transition, event: Ordered) -> None:
    state = transition.state
    by_id = {node.node_id: (ticket, node) for ticket, node in state.nodes.items()}
    try:
        if event.problem:
            raise UsageError(event.problem)
        members = [by_id[node_id][1] for node_id in event.order if node_id in by_id]
        assignments = assign_ranks(
            members,
            event.order,
            round_number=state.round_number,
            restart_count=_restart_count(state),
            warnings=plugin_warnings(members),
            missing=_missing(state),
        )
    except UsageError as error:
        _seal(transition, {"refusal": str(error)})
        return
    written = [
        (Key.assignment(state.round_number, state.ticket, by_id[node_id][0]), encode(assignment))
        for node_id, assignment in assignments.items()
    ]
    first = assignments[event.order[0]]
    transition.set(
        summary=RoundSummary(
            state.round_number,
            first.group_world_size,
            first.world_size,
            state.settings.min_nodes,
            state.settings.max_nodes,
            first.restart_count,
        )
    )
    keys, values = zip(*written, strict=True)
    transition.call("assignments", "put_many", *keys, values=values)


def on_seats(transition: Transition, value: Any) -> None:
    summary = transition.state.summary
    assert summary is not None
    _seal(
        transition,
        {
            "nodes": summary.group_world_size,
            "world_size": summary.world_size,
            "min_nodes": summary.min_nodes,
            "max_nodes": summary.max_nodes,
            "restart_count": summary.restart_count,
        },
    )


def _seal(transition: Transition, fields: Mapping[str, Any]) -> None:
    value = encode_object("sealed", {"sealer": transition.state.ticket, **fields})
    transition.call("seal", "create", Key.sealed(transition.state.round_number), values=(value,))


def on_seal(transition: Transition, value: Any) -> None:
    """Whoever won, the key exists now: read it as everyone else does."""
    transition.enter(Phase.AWAITING, f"round {transition.state.round_number} is sealed")
    transition.wait(Key.sealed(transition.state.round_number))


def _restart_count(state: State) -> int:
    """Return the job's restarts so far.

    When a node dies, the workers of the others often fail over it before its lease is over, and the round is ended
    as if they were the cause.  Losing a node costs no restart: a member that does not come back takes it off again.
    """
    previous = state.previous
    if previous is None or previous.ended is None:
        return 0
    ended = previous.ended
    if ended.verdict is Verdict.RESTART and _absent(state, previous):
        return min(ended.restart_count, previous.summary.restart_count)
    return ended.restart_count


def _absent(state: State, previous: Previous) -> list[int]:
    """Return the group ranks of the round before whose nodes are not here."""
    number = previous.summary.round_number
    back = {node.previous_rank for node in state.nodes.values() if node.previous_round == number and not node.declined}
    return [rank for rank in range(previous.summary.group_world_size) if rank not in back]


def _missing(state: State) -> tuple[str, ...]:
    """Say which nodes of the round before are not here although its recorded end does not tell: at most 16 of them.

    One of them may be why the round ended, whatever its first writer took for the cause.
    """
    previous = state.previous
    if previous is None or previous.ended is None:
        return ()
    sentences = []
    for rank in _absent(state, previous):
        if rank in previous.ended.lost_ranks:
            continue
        beat = state.liveness.beat(Key.rank_beat(previous.summary.round_number, rank))
        host = f" ({beat.host})" if beat is not None and beat.host else ""
        sentences.append(f"group rank {rank}{host} {'left' if beat is not None and beat.state.is_gone else 'was lost'}")
    return tuple(sentences[:16])


def sealed(transition: Transition, event: Appeared) -> None:
    state = transition.state
    if event.key != Key.sealed(state.round_number):
        return
    data = decode_object(event.key, event.value, "sealed")
    if data.get("refusal"):
        transition.give_up(FailureKind.STATE, str(data["refusal"]))
        return
    transition.set(summary=summary_of(state.round_number, data))
    sealer = data.get("sealer")
    if not isinstance(sealer, int):
        raise StoreCorruptError(event.key, "it names no sealer")
    transition.call("assignment", "get", Key.assignment(state.round_number, sealer, state.ticket))


def on_seat(transition: Transition, values: list[bytes | None]) -> None:
    state = transition.state
    assert state.summary is not None
    if values[0] is None:
        transition.set(previous=Previous(state.summary), summary=None)
        take_ticket(transition, state.round_number + 1)  # left out: first in line for the next round
        return
    assignment = decode_assignment(Key.assignment(state.round_number, 0, state.ticket), values[0])
    enter_round(transition, assignment)


def judge_sealer(transition: Transition) -> None:
    """Watch the ticket that should seal; if its heart stops, watch the next one, in the end myself."""
    state = transition.state
    key = Key.ticket_beat(state.round_number, state.leader)
    if state.leader >= state.ticket:
        return
    if state.liveness.has_left(key) or state.liveness.still_for(key) > state.settings.patience:
        transition.set(
            leader=state.leader + 1
        )  # what was seen of the dead one is kept: its successor must not take it in
        if transition.state.leader == state.ticket and state.phase is Phase.AWAITING:
            _become_sealer(transition)


def judge_gathered(transition: Transition) -> None:
    number = transition.state.round_number
    if transition.state.liveness.was_seen(Key.sealed(number)):
        transition.enter(Phase.AWAITING, f"round {number} was sealed by another node", seal_at=None)
        transition.wait(Key.sealed(number))
        return
    if "scan" not in transition.state.pending and "records" not in transition.state.pending:
        transition.call("scan", "add", Key.tickets(transition.state.round_number), amount=0)
