"""Which tickets the members of a sealed round have: written by the sealer, read where a heartbeat is missing.  Pure.

The list is kept in parts, so that the size of what one node reads, and of one value, has a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve

from .._bounded import MOST_TICKETS
from ..errors import StoreCorruptError
from ._members import is_ticket_unknown
from ._protocol import Key, Phase, Purpose
from ._transition import Transition
from ._wire import decode_object, encode_object

_PART = 1 << 12
_KIND = "rank tickets"


def encode_tickets(number: int, sealer: int, tickets: Sequence[int]) -> dict[str, bytes]:
    """Return key -> value of the list of ``tickets`` by group rank."""
    parts = [tickets[first:][:_PART] for first in range(0, len(tickets), _PART)]
    return {
        Key.rank_tickets(number, sealer, part): encode_object(_KIND, {"tickets": some})
        for part, some in enumerate(parts)
    }


def look_up_tickets(transition: Transition, number: int, sealer: int, ranks: Iterable[int]) -> None:
    """Read the tickets of those of ``ranks`` that have sent no heartbeat of the round, unless they are known."""
    if Purpose.MEMBER_TICKETS in transition.state.pending:
        return
    parts = sorted({rank // _PART for rank in ranks if is_ticket_unknown(transition.state, number, rank)})
    if parts:
        transition.get(Purpose.MEMBER_TICKETS, [Key.rank_tickets(number, sealer, part) for part in parts])


def on_tickets(transition: Transition, values: list[bytes | None]) -> None:
    """Note them, and read the heartbeats that they stand for."""
    state = transition.state
    summary = state.summary if state.phase is Phase.RUNNING or state.previous is None else state.previous.summary
    assert summary is not None
    tickets = dict(state.watch.tickets)
    for key, value in zip(state.pending[Purpose.MEMBER_TICKETS].keys, values, strict=True):
        number, _, _, part = key.split("/")
        if int(number) != summary.round_number:
            return  # it was asked for in an earlier round
        listed = [] if value is None else decode_tickets(key, value)
        first = int(part) * _PART
        for rank in range(first, min(first + _PART, summary.group_world_size)):
            tickets[rank] = listed[rank - first] if rank - first < len(listed) else 0
    transition.set(watch=evolve(state.watch, tickets=tickets))
    transition.read_heartbeats()


def decode_tickets(key: str, value: bytes) -> list[int]:
    tickets = decode_object(key, value, _KIND).get("tickets")
    if not isinstance(tickets, list) or len(tickets) > _PART:
        raise StoreCorruptError(key, "it is not a list of tickets")
    if not all(type(ticket) is int and 1 <= ticket <= MOST_TICKETS for ticket in tickets):
        raise StoreCorruptError(key, "it lists what is not a ticket")
    return tickets
