"""What a handler makes of its parameters: the protocol's settings, and the parameters of a short visit.

What does not live here: the parameters themselves (``_api``).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from ..cut_off import WhenCutOff, parse_when_cut_off
from ..text import without_passwords
from ..timeouts import Timeouts
from ._api import RendezvousParameters
from ._protocol import Settings

#: How long a node that declines tries to reach the store.
_DECLINE_CONNECT_SECONDS = 2.0


def settings_of(parameters: RendezvousParameters, outlives_job: bool = False) -> Settings:
    """Return the protocol's settings from the parameters.  Raises UsageError for values that cannot be used."""
    timeouts = Timeouts.from_settings(parameters.config)
    return Settings(
        parameters.min_nodes,
        parameters.max_nodes,
        timeouts,
        outlives_job,
        parse_when_cut_off(parameters.get("when_cut_off", WhenCutOff.RUN)),
        bool(parameters.get_as_bool("majority", False)),
        parameters.run_id,
        without_passwords(parameters.endpoint),
    )


def for_short_visit(parameters: RendezvousParameters) -> RendezvousParameters:
    """Return parameters for a short visit: this node does not host the store, and connects within a short time."""
    guest = copy(parameters)
    guest.config = {**parameters.config, "is_host": False, "connect_timeout": _DECLINE_CONNECT_SECONDS}
    return guest


def with_waiting_callback(parameters: RendezvousParameters, on_waiting: Callable[[str], None]) -> RendezvousParameters:
    """Return parameters with which a backend tells ``on_waiting`` what it waits for."""
    told = copy(parameters)
    told.on_waiting = on_waiting
    return told
