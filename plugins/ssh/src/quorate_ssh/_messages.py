"""What the two ends of a connection say to each other: one JSON object a line, checked where it comes in.

The launching side writes to the host's standard input.  The host's answers stand on its standard output, each after a
mark, because a host's shell may print what it likes before, and the agent's own output follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from quorate.text import is_word_of_command, parse_json

MARK = "\x1equorate-ssh "
LONGEST_LINE = 8 << 20
#: How often the launching side says that it lives, and after what silence a host takes it for dead.
PING_SECONDS = 2.0
SILENCE_SECONDS = 15.0
_LARGEST_PORT, _LARGEST_PID, _LARGEST_SIGNAL = 65535, 1 << 22, 64


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes | str, kinds: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """Return the message of a line; an empty one where the line is not a message, or is not well-formed.

    Arguments:
        line: what has come.
        kinds: :data:`ANSWERS` (of a host) or :data:`ORDERS` (to a host).
    """
    try:
        message = parse_json(line)
    except ValueError:
        return {}
    if not isinstance(message, dict):
        return {}
    return message if all(kinds[key](value) for key, value in message.items() if key in kinds) else {}


def is_record(value: Any) -> bool:
    """Return whether ``value`` is the record of a detached agent."""
    return (
        isinstance(value, dict)
        and all(is_word_of_command(value.get(name)) for name in ("job", "host", "log"))
        and _is_number(value.get("pid"), 2, _LARGEST_PID)
        and isinstance(value.get("is_alive", False), bool)
    )


def _is_number(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _has_texts(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(
        value[name] is None or is_word_of_command(value[name]) for name in names if name in value
    )


def _is_hello(value: Any) -> bool:
    return (
        _has_texts(value, "version", "plugins", "host", "address", "machine")
        and isinstance(value.get("version"), str)
        and _is_number(value.get("port", 0), 0, _LARGEST_PORT)
        and str(value.get("address") or "").isprintable()
    )


def _is_start(value: Any) -> bool:
    return (
        _has_texts(value, "detach")
        and isinstance(value.get("arguments"), list)
        and all(map(is_word_of_command, value["arguments"]))
        and isinstance(value.get("environment"), dict)
        and all(name and "=" not in name for name in value["environment"])
        and all(map(is_word_of_command, [*value["environment"], *value["environment"].values()]))
    )


def _is_told(value: Any) -> bool:
    return is_record(value) or (isinstance(value, list) and all(map(is_record, value)))


#: What a host says: what it is, what is wrong with it, and its detached agents.
ANSWERS: Mapping[str, Callable[[Any], bool]] = {"hello": _is_hello, "problem": is_word_of_command, "detached": _is_told}
#: What a host is told; a ping is any value.
ORDERS: Mapping[str, Callable[[Any], bool]] = {
    "check": lambda value: _has_texts(value, "folder", "script"),
    "start": _is_start,
    "detached": lambda value: _has_texts(value, "end", "forget"),
    "signal": lambda value: _is_number(value, 1, _LARGEST_SIGNAL),
}
