"""What the lines in the pipes mean: those of our own client, and those of torch's ``FileTimerClient``.

Each line is a JSON object.

| whose | fields |
|---|---|
| ours, always | ``pid``, ``namespace``, ``agent``, ``rank``, ``round`` |
| ours, a timer | ``timer`` (a number), ``after`` (seconds; negative: released), ``scope`` |
| ours, a heartbeat | ``heartbeat`` |
| torch's | ``pid``, ``scope_id``, ``expiration_time`` (wall seconds; negative: released), ``signal`` |

What does not live here: clocks and processes.
"""

from __future__ import annotations

import json
import signal
from math import isfinite
from typing import Any, final

from attrs import frozen

_LONGEST_LINE_BYTES = 1 << 13
_LONGEST_SCOPE = 300
_LARGEST_PID = 1 << 30
_LARGEST_NUMBER = 1 << 63
#: Far beyond any time that a timer runs for, and any wall time that it ends at.
_LONGEST_SECONDS = 1e12


@final
@frozen
class Message:
    """One line.

    Arguments:
        pid: the process that wrote it, as that process sees itself.
        timer: the timer's name within its process; ``None``: a heartbeat.
        seconds: a duration, or wall time where ``is_wall``; negative: the timer is released.
        scope: what is timed.
        is_wall: see ``seconds``.
        is_fatal: false if the end of the timer is only a message.
        namespace: the inode of the writer's process namespace; 0 in torch's lines.
        agent: the token of the writer's agent; this and the next two are our own client's.
        rank: the worker's global rank.
        round_number: the worker's round.
    """

    pid: int
    timer: int | str | None
    seconds: float = 0.0
    scope: str = ""
    is_wall: bool = False
    is_fatal: bool = True
    namespace: int = 0
    agent: str = ""
    rank: int = -1
    round_number: int = -1


@final
class Lines:
    """Splits what is read from a pipe into lines.  A line that is too long is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_dropping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._is_dropping and lines:
            self._is_dropping = False
            lines = lines[1:]
        if len(self._rest) > _LONGEST_LINE_BYTES:
            self._rest, self._is_dropping = b"", True
        return lines


def parse(line: bytes) -> Message | None:
    """Return what a line means, ``None`` if it is not a message.

    A line may begin with a part of another one, whose writer died while it wrote.
    """
    message = _parse(line)
    if message is None and (start := line.rfind(b"{")) > 0:
        message = _parse(line[start:])
    return message


def _parse(line: bytes) -> Message | None:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not 0 < _whole(record["pid"]) < _LARGEST_PID:
            return None
        return _parse_torch(record) if "scope_id" in record else _parse_own(record)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _parse_torch(record: dict[str, Any]) -> Message:
    scope = str(record["scope_id"])[:_LONGEST_SCOPE]  # also the timer's name, of which many are kept
    return Message(
        record["pid"],
        scope,
        _seconds(record["expiration_time"]),
        scope,
        is_wall=True,
        is_fatal=_whole(record.get("signal", int(signal.SIGKILL))) > 0,
    )


def _parse_own(record: dict[str, Any]) -> Message:
    is_timer = "timer" in record
    return Message(
        record["pid"],
        _whole(record["timer"]) if is_timer else None,
        _seconds(record["after" if is_timer else "heartbeat"]),
        str(record.get("scope", ""))[:_LONGEST_SCOPE],
        namespace=_whole(record["namespace"]),
        agent=str(record["agent"]),
        rank=_whole(record["rank"]),
        round_number=_whole(record["round"]),
    )


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) > _LARGEST_NUMBER:
        raise TypeError
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError
    return max(-_LONGEST_SECONDS, min(float(value), _LONGEST_SECONDS))
