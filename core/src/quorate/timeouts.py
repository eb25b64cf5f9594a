"""``Timeouts``: every timeout of a rendezvous, what it bounds, its default, and how they depend on each other.

What does not live here: timeouts of the agent (:class:`quorate.LaunchConfig`), and times that only one backend knows
(``RendezvousBackend.settings``).  ``docs/timeouts.md`` is generated from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from attrs import field, fields, frozen

from .errors import UsageError

__all__ = [
    "ALIASES",
    "HEARTBEATS_PER_READING",
    "LONGEST_SECONDS",
    "RELATIONS",
    "RELEASE_TIMEOUT_SECONDS",
    "Timeouts",
    "parse_seconds",
    "setting_names",
]


LONGEST_SECONDS = 366 * 86_400.0
_HEARTBEATS_PER_LEASE = 12
HEARTBEATS_PER_READING = 3
#: Nearly one interval, so that a lost machine is known 0.3 s after a lease of 3 s.
_TOLERANCE = 0.066
#: How long a live worker may take to leave its world, unless the setting ``release_timeout`` says otherwise.
RELEASE_TIMEOUT_SECONDS = 5.0


def parse_seconds(name: str, value: Any) -> float:
    """Return ``value`` as seconds; more than a year counts as a year, since no system call waits longer than that.

    Raises:
        UsageError: it is not a finite number of at least 0; ``name`` stands in the message.
    """
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not (0.0 <= number < math.inf):
        raise UsageError(f"{name} is {value!r}; it must be a finite number of seconds, at least 0")
    return min(number, LONGEST_SECONDS)


def _timeout(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@final
@frozen
class Timeouts:
    """The timeouts of a rendezvous, in seconds; each is a setting of ``rdzv_configs`` (``--rdzv-conf``).

    A default gives way to what was set (a ``join_timeout`` of 30 also bounds ``connect_timeout``).  Two settings that
    contradict each other are an error.
    """

    join_timeout: float = _timeout(
        600.0,
        "from the request to join until a round is sealed with this node in it; includes all other waits of joining",
    )
    connect_timeout: float = _timeout(
        60.0, "one attempt to reach the store; attempts are repeated until `join_timeout`"
    )
    last_call_timeout: float = _timeout(
        5.0,
        "how long a round that has `min_nodes` waits for one more node before it is sealed. With `max_nodes` the round "
        "is sealed at once. The wait ends a moment before `join_timeout` at the latest",
    )
    settle_timeout: float = _timeout(
        0.1,
        "a round ends for new nodes when no further node has arrived for this long. So ten new nodes cost one new "
        "round",
    )
    lease_timeout: float = _timeout(
        3.0,
        "how long a node may send no heartbeat before the others go on without it. A node sends twelve heartbeats in "
        "this time. It is lost when the others have seen no new heartbeat for 1.07 times as long. A node whose "
        "collectives broke waits 1.25 times as long before it records this as the cause",
    )
    operation_timeout: float = _timeout(5.0, "one operation on the store; a failed operation is repeated")
    store_outage_timeout: float = _timeout(
        300.0, "how long healthy workers keep running while the store cannot be reached"
    )
    close_timeout: float = _timeout(5.0, "how long a node that leaves tries to tell the others")
    linger_timeout: float = _timeout(
        5.0, "how long the node that hosts the store waits, at the job's end, for the others to read how it ended"
    )

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between two heartbeats of one node: a twelfth of its lease."""
        return self.lease_timeout / _HEARTBEATS_PER_LEASE

    @property
    def reading_interval(self) -> float:
        """Seconds between two readings of other nodes' heartbeats: a quarter of the lease."""
        return self.lease_timeout * HEARTBEATS_PER_READING / _HEARTBEATS_PER_LEASE

    @property
    def silence_limit(self) -> float:
        """Seconds after a node's last heartbeat at which it is lost.

        A node that stands still does so up to one interval after its last heartbeat, so that the limit is above the
        lease.  Who stands still for less than 0.96 leases is never lost, who does so for 1.1 leases always is.
        """
        return self.lease_timeout * (1 + _TOLERANCE)

    @property
    def cut_off_timeout(self) -> float:
        """Seconds after its last acknowledged heartbeat at which a node is cut off: eleven twelfths of its lease.

        That leaves 0.15 leases to freeze or kill workers before any other node calls it lost.
        """
        return self.lease_timeout - self.heartbeat_interval

    @property
    def loss_timeout(self) -> float:
        """Seconds within which the other nodes have recorded that a node is lost."""
        return 1.25 * self.lease_timeout

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Timeouts:
        """Return the timeouts that ``settings`` ask for, in TorchElastic's spellings too (:data:`ALIASES`).

        Raises:
            UsageError: a value is not a number of seconds, or two contradict each other.
        """
        chosen = {name: _setting(settings, name) for name in _DEFAULTS if name in settings}
        for alias, name in ALIASES.items():
            if alias in settings and name not in chosen:
                chosen[name] = _setting(settings, alias)
        if "lease_timeout" not in chosen and not settings.keys().isdisjoint(_KEEP_ALIVE):
            interval, attempts = (_setting({**_KEEP_ALIVE, **settings}, name) for name in _KEEP_ALIVE)
            chosen["lease_timeout"] = interval * attempts
        return cls(**_reconciled(chosen))


#: Another spelling of a setting -> its name; the name wins where both are set.
ALIASES: Mapping[str, str] = {"timeout": "join_timeout", "read_timeout": "operation_timeout"}

#: TorchElastic's settings whose product is the lease, with its defaults.
_KEEP_ALIVE: Mapping[str, float] = {"keep_alive_interval": 5.0, "keep_alive_max_attempt": 3.0}

_DEFAULTS: Mapping[str, float] = {each.name: float(each.default or 0) for each in fields(Timeouts)}


def setting_names() -> frozenset[str]:
    """Return the names of all settings that :meth:`Timeouts.from_settings` reads."""
    return frozenset({*_DEFAULTS, *ALIASES, *_KEEP_ALIVE})


#: What must not be above what, and why.
RELATIONS: Sequence[tuple[str, str, str]] = (
    ("connect_timeout", "join_timeout", "connecting is a part of joining"),
    ("settle_timeout", "join_timeout", "arrivals settle while a round is joined"),
    ("lease_timeout", "store_outage_timeout", "a node must outlive an outage of the store for at least its lease"),
)
_SHORTEST_LEASE_SECONDS = 0.2


def _setting(settings: Mapping[str, Any], name: str) -> float:
    return parse_seconds(f"rdzv_configs {name}", settings[name])


def _reconciled(chosen: dict[str, float]) -> dict[str, float]:
    values = {**_DEFAULTS, **chosen}
    for name in ("join_timeout", "operation_timeout"):
        if values[name] <= 0:
            raise UsageError(f"{name} is 0, so that it could never succeed; set it to seconds above 0 (--rdzv-conf)")
    if values["lease_timeout"] < _SHORTEST_LEASE_SECONDS:
        raise UsageError(
            f"lease_timeout={values['lease_timeout']:g} is too short to tell a slow node from a lost one; "
            f"set it to at least {_SHORTEST_LEASE_SECONDS} seconds (--rdzv-conf)"
        )
    for smaller, larger, why in RELATIONS:
        if values[smaller] <= values[larger]:
            continue
        if smaller in chosen and larger in chosen:
            raise UsageError(
                f"{smaller}={values[smaller]:g} is above {larger}={values[larger]:g}, but {why}; "
                f"lower {smaller} or raise {larger} (--rdzv-conf)"
            )
        # What was set stays; the default gives way to it.
        follower, leader = (larger, smaller) if smaller in chosen else (smaller, larger)
        values[follower] = values[leader]
    return values
