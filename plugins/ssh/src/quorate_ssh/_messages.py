"""What the two ends of a connection say to each other: one JSON object a line.

The launching side writes to the host's standard input.  The host's answers stand on its standard output, each after a
mark, because a host's shell may print what it likes before, and the agent's own output follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["LONGEST_LINE", "MARK", "PING_SECONDS", "SILENCE_SECONDS", "decode", "encode"]

MARK = "\x1equorate-ssh "
LONGEST_LINE = 8 << 20
#: How often the launching side says that it lives, and after what silence a host takes it for dead.
PING_SECONDS = 2.0
SILENCE_SECONDS = 15.0


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes | str) -> dict[str, Any]:
    """Return the message of a line; an empty one where it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
