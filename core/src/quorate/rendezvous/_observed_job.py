"""What a store shows of the nodes that use it: the newest round, how it ended, and the heartbeats of its nodes.

Read by a node that has not joined yet.  What does not live here: what follows from it (``_incarnation``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from attrs import field, frozen

from ..records import RoundEnd
from ._liveness import Heartbeat
from ._protocol import Key
from ._store import Store, parse_counter
from ._transition import check_round, check_tickets, decode_seal, read_summary
from ._wire import decode_end

#: How many tickets of nodes in line are looked at, from the first on.
_MOST_TICKETS = 256


@final
@frozen
class ObservedJob:
    """The newest round: its number, how many nodes it has (0: it gathers), its end, and heartbeats by key."""

    number: int
    size: int = 0
    tickets: int = 0
    end: RoundEnd | None = None
    heartbeats: Mapping[str, bytes | None] = field(factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the job's end is recorded."""
        return self.end is not None and self.end.verdict.is_terminal

    def hosts(self) -> list[str]:
        """Return the hosts that have sent heartbeats, in the order of their ranks, each once."""
        heartbeats = [Heartbeat.decode(value) for value in self.heartbeats.values() if value is not None]
        return list(dict.fromkeys(heartbeat.host for heartbeat in heartbeats if heartbeat.host))


def _hinted_round(store: Store) -> int:
    """Return the highest round up to the hint whose predecessors have all ended."""
    low, high = 0, check_round(parse_counter(Key.ROUND, store.get([Key.ROUND])[0]))
    if high == 0 or store.get([Key.ended(high - 1)])[0] is not None:
        return high
    while high - low > 1:  # the hint is too high: its increment was repeated, or another program wrote it
        middle = (low + high) // 2
        low, high = (middle, high) if store.get([Key.ended(middle - 1)])[0] is not None else (low, middle)
    return low


def observe_job(store: Store, with_heartbeats: bool = True) -> ObservedJob:
    """Return what ``store`` shows of the job.

    Raises:
        StoreUnavailableError: no answer.
        StoreCorruptError: a value was not written by quorate.
    """
    number = _hinted_round(store)
    sealed, ended = store.get([Key.sealed(number), Key.ended(number)])
    while ended is not None and not decode_end(Key.ended(number), ended).verdict.is_terminal:
        number += 1
        sealed, ended = store.get([Key.sealed(number), Key.ended(number)])
    if sealed is None and ended is None and number > 0:
        before = store.get([Key.sealed(number - 1), Key.ended(number - 1)])
        if before[1] is not None and decode_end(Key.ended(number - 1), before[1]).verdict.is_terminal:
            number, (sealed, ended) = number - 1, before
    size = 0
    if sealed is not None and not (seal := decode_seal(number, sealed)).get("refusal"):
        size = read_summary(number, seal).group_world_size
    line = number + 1 if size else number
    tickets = check_tickets(Key.tickets(line), parse_counter(Key.tickets(line), store.get([Key.tickets(line)])[0]))
    keys: list[str] = []
    if with_heartbeats:
        keys += [Key.rank_heartbeat(number, rank) for rank in range(size)]
        keys += [Key.ticket_heartbeat(line, ticket) for ticket in range(1, min(tickets, _MOST_TICKETS) + 1)]
    end = None if ended is None else decode_end(Key.ended(number), ended)
    values = store.get(keys) if keys else []
    return ObservedJob(number, size, tickets, end, dict(zip(keys, values, strict=True)))


def count_in_line(store: Store, number: int) -> int:
    """Return how many nodes have a ticket of round ``number`` and have not given it back.

    Raises as :func:`observe_job` does.
    """
    tickets = check_tickets(Key.tickets(number), store.add(Key.tickets(number), 0))
    keys = [Key.ticket_heartbeat(number, ticket) for ticket in range(1, min(tickets, _MOST_TICKETS) + 1)]
    heartbeats = store.get(keys) if keys else []
    return tickets - sum(value is not None and Heartbeat.decode(value).state.has_left for value in heartbeats)
