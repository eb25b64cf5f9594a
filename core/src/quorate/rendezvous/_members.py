"""Which heartbeat shows that a member of a sealed round is alive.  Pure.

A member sends the heartbeat of its group rank once it knows that the round is sealed.  Until then it sends that of its
ticket, and may do so for long: what it has to read comes late where packets are lost.  So a node without a heartbeat of
its rank is judged by the one of its ticket.  Which ticket a group rank has stands in the store, in parts that only a
node reads which finds a heartbeat missing; that of group rank 0, which all nodes watch, stands in the seal.

What does not live here: reading those parts (``_member_tickets``), and what follows from a loss (``_running``,
``_joining``).
"""

from __future__ import annotations

from collections.abc import Iterable

from ._protocol import Key
from ._state import State


def heartbeat_key_of(state: State, number: int, rank: int) -> str:
    """Return the key of the heartbeat by which the member with this group rank is judged now."""
    key, liveness = Key.rank_heartbeat(number, rank), state.watch.liveness
    ticket = state.watch.tickets.get(rank, 0)
    if liveness.exists(key) or not ticket:
        return key
    before = Key.ticket_heartbeat(number, ticket)
    return before if liveness.exists(before) or not liveness.was_read(before) else key


def keys_to_read(state: State, number: int, ranks: Iterable[int]) -> tuple[str, ...]:
    """Return the keys that show whether the members with these group ranks are alive."""
    keys: list[str] = []
    for rank in ranks:
        key, ticket = Key.rank_heartbeat(number, rank), state.watch.tickets.get(rank, 0)
        keys.append(key)
        if ticket and not state.watch.liveness.exists(key):
            keys.append(Key.ticket_heartbeat(number, ticket))
    return tuple(keys)


def is_ticket_unknown(state: State, number: int, rank: int) -> bool:
    """Return whether this member has sent no heartbeat of the round, and its ticket was not looked up."""
    return rank not in state.watch.tickets and not state.watch.liveness.exists(Key.rank_heartbeat(number, rank))
