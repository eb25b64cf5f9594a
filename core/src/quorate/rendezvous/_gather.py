"""May the round be sealed now?  One pure question; the answer names the rule that decided it, with a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import final

from attrs import frozen

from .._bounded import LARGEST_COUNTER
from ..records import NodeRecord, RoundEnd
from ._protocol import Key
from ._state import State

_MOST_NAMES = 16
_MOST_DECLINED = 3
_MOST_DIFFERENCES = 8
#: How long before the join deadline a round of ``min_nodes`` is sealed, at most.
_LONGEST_MARGIN_SECONDS = 0.5


@final
class Rule(Enum):
    """Which rule of :func:`evaluate` decided."""

    DELAY = "the last round's end asked for a delay"
    FULL = "max_nodes are here"
    BELOW_MINIMUM = "fewer than min_nodes are here"
    SURVIVORS_MISSING = "survivors of the last round are not back yet"
    MINORITY = "half of the last round's nodes or fewer are here"
    SURVIVORS_BACK = "all survivors of the last round are back"
    LAST_CALL = "the last call is not over"
    LAST_CALL_OVER = "no node came during the last call"

    @property
    def allows_sealing(self) -> bool:
        return self in (Rule.FULL, Rule.SURVIVORS_BACK, Rule.LAST_CALL_OVER)


@final
@frozen
class Readiness:
    """The rule that decided, the reason in words, and when time alone may change the answer."""

    rule: Rule
    reason: str
    ask_again_at: float | None = None


def live_nodes(state: State) -> dict[int, NodeRecord]:
    """Return ticket -> record of the nodes that want to join and whose heartbeat, if any, is current."""
    live: dict[int, NodeRecord] = {}
    for ticket, node in sorted(state.gathering.nodes.items()):
        if node.declined:
            continue
        key = Key.ticket_heartbeat(state.round_number, ticket)
        if ticket == state.ticket or not state.watch.liveness.is_gone(key, state.settings.silence_limit):
            live[ticket] = node
    return live


def missing_survivors(state: State) -> list[int]:
    """Return the group ranks of the last round that are alive but not back, because they still stop their workers.

    A node counts as alive until its heartbeat was read after the round's end.  An earlier reading, by the node that
    found it lost or by this one on standby, may be old.
    """
    previous = state.previous
    if previous is None or previous.ended is None:
        return []
    number, size = previous.summary.round_number, previous.summary.group_world_size
    back = {node.previous_rank for node in state.gathering.nodes.values() if node.previous_round == number}
    lost = _last_counts(previous.ended)
    away = [rank for rank in range(size) if rank not in back and lost.get(rank, 0) is not None]
    limit, liveness = state.settings.silence_limit, state.watch.liveness

    def is_away(rank: int) -> bool:
        key = Key.rank_heartbeat(number, rank)
        if not state.gathering.has_looked:
            return not liveness.has_left(key)
        if rank in lost and liveness.count_of(key) <= (lost[rank] or 0):
            return False
        return not liveness.is_gone(key, limit)

    return [rank for rank in away if is_away(rank)]


def _last_counts(ended: RoundEnd) -> dict[int, int | None]:
    """Return group rank -> the heartbeat counter at which a node was found lost; ``None`` if it is gone for certain.

    A node that has sent another heartbeat since is alive.  It may not know yet that the round has ended, and is waited
    for.
    """
    counts: dict[int, int | None] = dict.fromkeys(ended.lost_ranks)
    if len(ended.lost_counts) == len(ended.lost_ranks):
        for rank, count in zip(ended.lost_ranks, ended.lost_counts, strict=True):
            counts[rank] = count if count < LARGEST_COUNTER else None
    return counts


def evaluate(state: State, now: float) -> Readiness:
    """Decide whether the sealer may seal.

    1. Not before a delay that the last round's end asked for.
    2. At once when ``max_nodes`` are here, unless a standby would take the place of a survivor (see 4).
    3. Never with fewer than ``min_nodes``.
    4. After another round: once all its survivors are back; with ``majority``, if they are more than half of its nodes.
    5. In the first round: once no node came for ``last_call_timeout`` seconds, or just before this node's join
       deadline: a round of ``min_nodes`` is worth more than none.
    """
    settings, live = state.settings, live_nodes(state)
    names, count = _names(live.values()), len(live)
    delay_until = state.gathering.since + _delay(state)
    if now < delay_until:
        text = f"holding the next round back for {delay_until - now:.1f} s more"
        return Readiness(Rule.DELAY, text, delay_until)
    missing = missing_survivors(state)
    minority = why_minority(state, live)
    if count >= settings.max_nodes and not missing and not minority:
        return Readiness(Rule.FULL, f"all {settings.max_nodes} nodes are here: {names}")
    if count < settings.min_nodes:
        shortage = f"{count} of {settings.min_nodes} nodes joined ({names}), {settings.min_nodes - count} missing"
        return Readiness(Rule.BELOW_MINIMUM, f"{shortage}{_declined(state)}")
    if missing:
        ranks = str(missing[:_MOST_NAMES]) + (" and more" if len(missing) > _MOST_NAMES else "")
        text = f"waiting for the group rank(s) {ranks} of the last round to stop their workers"
        return Readiness(Rule.SURVIVORS_MISSING, text)
    if minority:
        return Readiness(Rule.MINORITY, minority)
    if state.previous is not None:
        return Readiness(Rule.SURVIVORS_BACK, f"{count} nodes are here, and all survivors among them: {names}")
    last_call = _last_call_end(state)
    if now < last_call:
        return Readiness(
            Rule.LAST_CALL, f"{count} nodes are here, last call for {last_call - now:.1f} s more", last_call
        )
    return Readiness(Rule.LAST_CALL_OVER, f"{count} nodes are here and no other came during the last call: {names}")


def why_minority(state: State, live: Mapping[int, NodeRecord]) -> str:
    """Return why the nodes that are here may not go on without the others; ``""`` if they may.

    Only nodes of the last round count: a new node cannot tell what has become of those that are away.
    """
    previous = state.previous
    if not state.settings.majority or previous is None:
        return ""
    number, size = previous.summary.round_number, previous.summary.group_world_size
    back = [node for node in live.values() if node.previous_round == number]
    if len(back) > size // 2:
        return ""
    return (
        f"{len(back)} of the {size} node(s) of round {number} are here ({_names(back) or 'none'}), and no round begins "
        "without more than half of them (majority=true)"
    )


def _last_call_end(state: State) -> float:
    timeouts = state.settings.timeouts
    end = state.gathering.last_arrival + timeouts.last_call_timeout
    if state.join_deadline is None:
        return end
    return min(end, state.join_deadline - min(_LONGEST_MARGIN_SECONDS, timeouts.join_timeout / 10))


def _names(nodes: Iterable[NodeRecord]) -> str:
    """Return the first hosts of ``nodes``, and how many more there are."""
    hosts = sorted({node.name for node in nodes})
    more = f" and {len(hosts) - _MOST_NAMES} more" if len(hosts) > _MOST_NAMES else ""
    return ", ".join(hosts[:_MOST_NAMES]) + more


def _declined(state: State) -> str:
    """Return which nodes declined and why: the newest reason per host, and the three newest hosts."""
    reasons = {node.name: node.declined for _, node in sorted(state.gathering.nodes.items()) if node.declined}
    newest = list(reasons.items())[-_MOST_DECLINED:]
    return "".join(f"; {name} does not join: {reason}" for name, reason in newest)


def _delay(state: State) -> float:
    ended = state.previous.ended if state.previous is not None else None
    return ended.delay_seconds if ended is not None else 0.0


def plugin_warnings(nodes: Sequence[NodeRecord]) -> tuple[str, ...]:
    """Return one sentence if the nodes do not run the same plugins: what differs between two nodes that differ."""
    first = nodes[0]
    for node in nodes[1:]:
        if node.plugin_digest != first.plugin_digest:
            return (f"nodes run different plugins: {_difference(first, node)}",)
    return ()


def _difference(first: NodeRecord, second: NodeRecord) -> str:
    ours, theirs = _versions(first.plugin_digest), _versions(second.plugin_digest)
    parts = [
        f"{plugin} is {' and '.join(sorted(ours[plugin])) or 'without a version'} on {first.name} and "
        f"{' and '.join(sorted(theirs[plugin])) or 'without a version'} on {second.name}"
        for plugin in sorted(ours.keys() & theirs.keys())
        if ours[plugin] != theirs[plugin]
    ]
    for name, here, there in ((first.name, ours, theirs), (second.name, theirs, ours)):
        only = [" ".join((plugin, *sorted(here[plugin]))) for plugin in sorted(here.keys() - there.keys())]
        if only:
            parts.append(f"only {name} has {', '.join(only)}")
    more = f"; and {len(parts) - _MOST_DIFFERENCES} more" if len(parts) > _MOST_DIFFERENCES else ""
    return "; ".join(parts[:_MOST_DIFFERENCES]) + more or "their lists are not the same"


def _versions(digest: str) -> dict[str, set[str]]:
    """Return plugin -> its versions, from what :meth:`quorate.PluginHost.digest` has written."""
    result: dict[str, set[str]] = {}
    for item in filter(None, digest.split(",")):
        plugin, _, version = item.partition("=")
        result.setdefault(plugin, set()).update([version] if version else [])
    return result
