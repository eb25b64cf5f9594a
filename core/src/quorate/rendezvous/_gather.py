"""May the round be sealed now?  One pure question, answered with a sentence that says what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

from attrs import frozen

from ..records import NodeRecord
from ._protocol import Key, State

__all__ = ["Readiness", "evaluate", "live_nodes", "missing_survivors", "plugin_warnings"]

_MOST_NAMES = 16


@final
@frozen
class Readiness:
    """Whether to seal, why (not), and when the answer may change by time alone."""

    ready: bool
    reason: str
    ask_again_at: float | None = None


def live_nodes(state: State) -> dict[int, NodeRecord]:
    """Return ticket -> record of the nodes that are here to stay and whose heart, if it ever beat, still beats."""
    assert state.node is not None
    live: dict[int, NodeRecord] = {}
    patience = state.settings.patience
    for ticket, node in sorted(state.nodes.items()):
        if node.declined:
            continue
        key = Key.ticket_beat(state.round_number, ticket)
        gone = state.liveness.has_left(key) or state.liveness.still_for(key) > patience
        if ticket == state.ticket or not gone:
            live[ticket] = node
    return live


def missing_survivors(state: State) -> list[int]:
    """Return the group ranks of the previous round that are alive but not back yet (still stopping their workers)."""
    previous = state.previous
    if previous is None or previous.ended is None:
        return []
    number = previous.summary.round_number
    back = {node.previous_rank for node in state.nodes.values() if node.previous_round == number}
    missing: list[int] = []
    for rank in range(previous.summary.group_world_size):
        if rank in back or rank in previous.ended.lost_ranks:
            continue
        key = Key.rank_beat(number, rank)
        if state.liveness.has_left(key):
            continue
        if state.liveness.still_for(key) <= state.settings.patience:
            missing.append(rank)
    return missing


def evaluate(state: State, now: float) -> Readiness:
    """Decide whether the sealer may seal.

    1. Not before a delay that the last round's end asked for.
    2. At once when ``max_nodes`` are here, unless a standby would so take the place of a survivor (see 4).
    3. Never with fewer than ``min_nodes``.
    4. After a previous round: once all its surviving members are back.
    5. At first: once nobody came for ``last_call_timeout`` seconds.
    """
    settings, live = state.settings, live_nodes(state)
    names = _names(live.values())
    count = len(live)
    delay_until = state.gather_since + _delay(state)
    if now < delay_until:
        return Readiness(False, f"holding the next round back for {delay_until - now:.1f} s more", delay_until)
    missing = missing_survivors(state)
    if count >= settings.max_nodes and not missing:
        return Readiness(True, f"all {settings.max_nodes} nodes are here: {names}")
    if count < settings.min_nodes:
        missing_count = f"waiting for {settings.min_nodes - count} of {settings.min_nodes} nodes"
        return Readiness(False, f"{missing_count}; here: {names}{_unfit(state)}")
    if state.previous is not None:
        if missing:
            ranks = str(missing[:_MOST_NAMES]) + (" and more" if len(missing) > _MOST_NAMES else "")
            return Readiness(False, f"waiting for the group rank(s) {ranks} of the last round to stop their workers")
        return Readiness(True, f"{count} nodes are here, and all survivors among them: {names}")
    last_call = state.last_arrival + settings.last_call_timeout
    if now < last_call:
        return Readiness(False, f"{count} nodes are here, last call for {last_call - now:.1f} s more", last_call)
    return Readiness(True, f"{count} nodes are here and nobody came during the last call: {names}")


def _names(nodes: Iterable[NodeRecord]) -> str:
    """Return the hosts of ``nodes``, the first few of many: a sentence that names thousands helps nobody."""
    hosts = sorted({node.host or node.node_id for node in nodes})
    more = f" and {len(hosts) - _MOST_NAMES} more" if len(hosts) > _MOST_NAMES else ""
    return ", ".join(hosts[:_MOST_NAMES]) + more


def _unfit(state: State) -> str:
    """Return who came only to tell what is wrong with it; of one host the newest word, of all the newest three."""
    told = {node.host or node.node_id: node.declined for _, node in sorted(state.nodes.items()) if node.declined}
    return "".join(f"; {name} does not join: {problem}" for name, problem in list(told.items())[-3:])


def _delay(state: State) -> float:
    ended = state.previous.ended if state.previous is not None else None
    return ended.delay_seconds if ended is not None else 0.0


def plugin_warnings(nodes: Sequence[NodeRecord]) -> tuple[str, ...]:
    """Return one sentence if the nodes do not run the same plugins, naming two that differ."""
    first = nodes[0]
    for node in nodes[1:]:
        if node.plugin_digest != first.plugin_digest:
            return (
                f"nodes run different plugins: {first.host} has {first.plugin_digest or 'none'}; "
                f"{node.host} has {node.plugin_digest or 'none'}",
            )
    return ()
