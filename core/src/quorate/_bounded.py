"""Bounds of what comes in from others (peers, workers, disks), and JSON-able values that are cut to them.

What does not live here: what the values mean, bounds that one format alone has, and how JSON is read
(:func:`quorate.text.parse_json`).
"""

from __future__ import annotations

import math
from typing import Any

from attrs import Attribute

MOST_NODES = 1 << 16
#: In one round.  Nodes that crash and come back while a round runs take new ones.
MOST_TICKETS = 1 << 20
LARGEST_COUNTER = (1 << 63) - 1
#: How long a recorded end, or a restart policy, can hold the next round back.
LONGEST_DELAY_SECONDS = 86_400.0

_DEEPEST_KEPT = 32
_LEFT_OUT = "…"


def is_word(record: object, attribute: Attribute[str], value: object) -> None:
    """Refuse what is not a name of visible characters; a validator of attrs."""
    if not (isinstance(value, str) and value and value.isprintable()):
        raise ValueError(f"the {attribute.name} of a {type(record).__name__} is {value!r:.80}, not a word")


def pruned(value: Any, depth: int = _DEEPEST_KEPT) -> Any:
    """Return JSON-able ``value`` with what lies deeper than ``depth`` left out and numbers that are not finite as text.

    The result can be written and read again by everything that reads within the bounds here.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (dict, list)):
        if depth <= 0:
            return _LEFT_OUT
        if isinstance(value, dict):
            return {key: pruned(item, depth - 1) for key, item in value.items()}
        return [pruned(item, depth - 1) for item in value]
    return value
