"""``Timeouts``: the time-outs of a rendezvous.  Their defaults and the relations between them are stated here only.

``docs/timeouts.md`` says what each one is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from attrs import fields, frozen

from .errors import UsageError

__all__ = ["Timeouts"]

_INFINITE = float("inf")


@final
@frozen
class Timeouts:
    """The time-outs of a rendezvous, in seconds; each is a setting of ``rdzv_configs`` (``--rdzv-conf``).

    Defaults give way to what was set (a ``join_timeout`` of 30 also bounds ``connect_timeout``); two settings that
    contradict each other are an error.
    """

    join_timeout: float = 600.0
    last_call_timeout: float = 5.0
    settle_timeout: float = 0.1
    lease_timeout: float = 3.0
    connect_timeout: float = 60.0
    store_outage_timeout: float = 300.0
    close_timeout: float = 5.0

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between two signs of life of one node: a quarter of its lease."""
        return self.lease_timeout / 4

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Timeouts:
        """Return the time-outs that ``settings`` ask for, TorchElastic's own spellings included.

        ``timeout`` stands for ``join_timeout``, and ``keep_alive_interval`` times ``keep_alive_max_attempt`` for
        ``lease_timeout``, where those are not set themselves.

        Raises:
            UsageError: one is no number of seconds, or two contradict each other.
        """
        chosen = {name: _seconds(f"rdzv_configs {name}", settings[name]) for name in _TIMEOUTS if name in settings}
        if "timeout" in settings and "join_timeout" not in chosen:
            chosen["join_timeout"] = _seconds("rdzv_configs timeout", settings["timeout"])
        if "lease_timeout" not in chosen and (
            "keep_alive_interval" in settings or "keep_alive_max_attempt" in settings
        ):
            chosen["lease_timeout"] = _seconds(
                "rdzv_configs keep_alive_interval", settings.get("keep_alive_interval", 5)
            ) * _seconds("rdzv_configs keep_alive_max_attempt", settings.get("keep_alive_max_attempt", 3))
        return cls(**_reconciled(chosen))


_TIMEOUTS: Mapping[str, float] = {it.name: float(it.default or 0) for it in fields(Timeouts)}


def _reconciled(chosen: dict[str, float]) -> dict[str, float]:
    values = {**_TIMEOUTS, **chosen}
    if values["join_timeout"] <= 0:
        raise UsageError("join_timeout is 0, so that no node could ever join; set it to seconds above 0 (--rdzv-conf)")
    if values["lease_timeout"] < 0.2:
        raise UsageError(
            f"lease_timeout={values['lease_timeout']:g} is too short to tell a slow node from a lost one; "
            "set it to at least 0.2 seconds (--rdzv-conf)"
        )
    for smaller, larger, why in (
        ("connect_timeout", "join_timeout", "connecting is a part of joining"),
        ("last_call_timeout", "join_timeout", "the last call is a part of joining"),
        ("settle_timeout", "join_timeout", "arrivals settle while a round is joined"),
        ("lease_timeout", "store_outage_timeout", "a node must outlive an outage of the store for at least its lease"),
    ):
        if values[smaller] <= values[larger]:
            continue
        if smaller in chosen and larger in chosen:
            raise UsageError(
                f"{smaller}={values[smaller]:g} is above {larger}={values[larger]:g}, but {why}; "
                f"lower the one or raise the other (--rdzv-conf)"
            )
        # What was set stays; the default gives way to it.
        follower, leader = (larger, smaller) if smaller in chosen else (smaller, larger)
        values[follower] = values[leader]
    return values


def _seconds(name: str, value: object) -> float:
    convert: Callable[[Any], float] = float
    try:
        number = convert(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0.0 <= number < _INFINITE:
        raise UsageError(f"{name} is {value!r}; it must be a finite number of seconds, at least 0")
    return number
