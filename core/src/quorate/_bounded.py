"""Bounds of what comes in from others (peers, workers, disks), and JSON that is read within them.

What does not live here: what the values mean, and bounds that one format alone has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from attrs import Attribute

__all__ = [
    "LARGEST_COUNTER",
    "LONGEST_DELAY_SECONDS",
    "MOST_NODES",
    "MOST_TICKETS",
    "is_word",
    "parse_json",
    "pruned",
]

MOST_NODES = 1 << 16
#: In one round.  Nodes that crash and come back while a round runs take new ones.
MOST_TICKETS = 1 << 20
LARGEST_COUNTER = (1 << 63) - 1
#: How long a recorded end, or a restart policy, can hold the next round back.
LONGEST_DELAY_SECONDS = 86_400.0

_DEEPEST = 64
_DEEPEST_KEPT = 32
_LEFT_OUT = "…"


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is not finite")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parse_json(data: bytes) -> Any:
    """Return the value in ``data``, which is UTF-8.

    Raises:
        ValueError: it is not JSON, has a number that is not finite or too long, or is nested more than 64 deep.
    """
    try:
        value = _DECODER.decode(data.decode())
    except (RecursionError, OverflowError):
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for container in level for item in _items(container)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _items(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inside if isinstance(item, (dict, list)))


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
