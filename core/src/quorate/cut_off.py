"""What becomes of the workers of a node that has been without the store for a lease, and how long that is.

What does not live here: when a node knows that it is cut off (:mod:`quorate.rendezvous`), and how workers are frozen or
killed (:mod:`quorate.agent`).
"""

from __future__ import annotations

from typing import Any, final

from .errors import UsageError
from .records import TextEnum

__all__ = ["CUT_OFF_SETTINGS", "WhenCutOff", "parse_when_cut_off"]

#: Names of the settings that say what a node does while it is cut off, or among few.
CUT_OFF_SETTINGS = frozenset({"when_cut_off", "majority"})


@final
class WhenCutOff(TextEnum):
    """What becomes of a node's workers once the other nodes may go on without it (``when_cut_off``)."""

    RUN = "run"  # they go on
    FREEZE = "freeze"  # they stand still, and go on if the round turns out to be theirs still
    STOP = "stop"  # they are killed


def parse_when_cut_off(value: Any) -> WhenCutOff:
    """Return the policy that ``value`` names.

    Raises:
        UsageError: it names none.
    """
    try:
        return WhenCutOff(str(value).strip().lower())
    except ValueError:
        known = ", ".join(WhenCutOff)
        raise UsageError(
            f"the rendezvous setting when_cut_off={str(value)[:80]!r} is not one of {known} (--rdzv-conf)"
        ) from None
