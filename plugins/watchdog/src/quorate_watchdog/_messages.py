"""What the lines in the pipes mean: those of our own client, and those of torch's ``FileTimerClient``.

Ours begin with ``pid``, ``namespace``, ``agent``, ``rank`` and ``round``, and go on with ``timer``, ``after`` (seconds,
-1: released) and ``scope``, or with ``beat``.  torch's have ``pid``, ``scope_id``, ``expiration_time`` (wall seconds,
negative: released) and ``signal``.  What does not live here: clocks and processes.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, final

__all__ = ["Lines", "Message", "parse"]

_LONGEST_LINE_BYTES = 1 << 13
_LONGEST_SCOPE = 300
_LARGEST_PID = 1 << 30


@final
class Message:
    """One line.  ``timer`` names a timer within its process; ``None`` is a heartbeat.

    ``seconds`` is a duration, or wall time where ``is_wall``; negative: the timer is released.  ``is_fatal`` is false
    if its owner only wants to be told.  The last four are our own client's; ``namespace`` is 0 in torch's.
    """

    __slots__ = (
        "agent",
        "is_fatal",
        "is_wall",
        "namespace",
        "pid",
        "rank",
        "round_number",
        "scope",
        "seconds",
        "timer",
    )

    def __init__(
        self,
        pid: int,
        timer: int | str | None,
        seconds: float = 0.0,
        scope: str = "",
        is_wall: bool = False,
        is_fatal: bool = True,
        namespace: int = 0,
        agent: str = "",
        rank: int = -1,
        round_number: int = -1,
    ) -> None:
        self.pid, self.timer, self.seconds, self.scope = pid, timer, seconds, scope
        self.is_wall, self.is_fatal, self.namespace = is_wall, is_fatal, namespace
        self.agent, self.rank, self.round_number = agent, rank, round_number


class Lines:
    """Cuts what comes out of a pipe into lines.  One that does not end is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_lost = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._is_lost and lines:
            self._is_lost = False
            lines = lines[1:]
        if len(self._rest) > _LONGEST_LINE_BYTES:
            self._rest, self._is_lost = b"", True
        return lines


def parse(line: bytes) -> Message | None:
    """Return what a line says, ``None`` if it says nothing that we know.

    A line may begin with the torn one of a process that died in the midst of writing; the whole one follows it.
    """
    message = _parse(line)
    if message is None and (start := line.rfind(b"{")) > 0:
        message = _parse(line[start:])
    return message


def _parse(line: bytes) -> Message | None:
    import json  # of no use to a job whose workers say nothing

    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not 0 < _whole(record["pid"]) < _LARGEST_PID:
            return None
        return _parse_torch(record) if "scope_id" in record else _parse_own(record)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _parse_torch(record: dict[str, Any]) -> Message:
    scope = str(record["scope_id"])
    signal_number = _whole(record.get("signal", 9))
    return Message(
        record["pid"], scope, _seconds(record["expiration_time"]), scope[:_LONGEST_SCOPE], True, signal_number > 0
    )


def _parse_own(record: dict[str, Any]) -> Message:
    is_timer = "timer" in record
    return Message(
        record["pid"],
        _whole(record["timer"]) if is_timer else None,
        _seconds(record["after"]) if is_timer else _seconds(record["beat"]),
        str(record.get("scope", ""))[:_LONGEST_SCOPE],
        namespace=_whole(record["namespace"]),
        agent=str(record["agent"]),
        rank=_whole(record["rank"]),
        round_number=_whole(record["round"]),
    )


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError
    return float(value)
