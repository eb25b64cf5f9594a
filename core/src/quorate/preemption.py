"""The deadline of a job that its scheduler will end: how workers learn of it, and what they and the agent exchange.

The agent writes the file that ``QUORATE_DEADLINE_FILE`` names in every worker's environment, in space that it took
before the workers began, since the disk may be full by then.  It sends the scheduler's signal afterwards.  A training
program asks :func:`deadline` between two steps, with or without a signal handler.  What does not live here: which
signal is a warning (:mod:`quorate.clusters`), and what the agent does with it.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from typing import Any, final

from attrs import frozen

from .clock import monotonic, sleep, wall_time_ns
from .files import publish, read_bytes, reserve, write_atomically
from .text import parse_json, printable

__all__ = ["DEADLINE_VARIABLE", "Deadline", "deadline", "remove_deadline", "reserve_deadline", "write_deadline"]

#: Names the file, which is written when the deadline is known.
DEADLINE_VARIABLE = "QUORATE_DEADLINE_FILE"
_MOST_BYTES = 1 << 16
_LONGEST_REASON = 1000
#: Enough for the longest reason, whose characters may each become twelve bytes of JSON.
_RESERVED_BYTES = 16_384
_PAUSE_SECONDS = 0.01
_LONGEST_WAIT_SECONDS = 86_400.0


@final
@frozen
class Deadline:
    """When the workers are killed, on this machine's monotonic clock and as Unix time; and why."""

    monotonic_seconds: float
    unix_seconds: float
    reason: str = ""
    signal_number: int = 0

    @property
    def seconds_left(self) -> float:
        """The seconds until then, 0 once it has passed."""
        return max(0.0, self.monotonic_seconds - monotonic())


def deadline(wait_seconds: float = 0.0) -> Deadline | None:
    """Return when this worker has to be done, ``None`` while nothing has been announced.

    It costs one attempt to open a file.  Some schedulers send their signal to workers and agent at the same time: a
    signal handler gives the agent a moment (``wait_seconds``) to write the file.
    """
    until = monotonic() + (min(wait_seconds, _LONGEST_WAIT_SECONDS) if wait_seconds > 0 else 0.0)  # NaN: do not wait
    while True:
        found = _read()
        if found is not None or monotonic() >= until:
            return found
        sleep(_PAUSE_SECONDS)


def _read() -> Deadline | None:
    path = os.environ.get(DEADLINE_VARIABLE)
    content = read_bytes(path, _MOST_BYTES, regular=True) if path else b""
    if not content:
        return None
    try:
        data: Any = parse_json(content)
        times = data["monotonic_seconds"], data["unix_seconds"]
        if not all(isinstance(time, (int, float)) and math.isfinite(time) for time in times):
            return None
        return Deadline(
            float(times[0]),
            float(times[1]),
            printable(str(data["reason"]), _LONGEST_REASON),
            int(data["signal_number"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def reserve_deadline(path: str) -> int | None:
    """Take the space for an announcement under ``path`` (:func:`quorate.files.reserve`)."""
    return reserve(os.path.dirname(path), _RESERVED_BYTES)


def write_deadline(path: str, seconds: float, reason: str, signal_number: int, reserved: int | None = None) -> None:
    """Announce that this machine's workers have ``seconds`` left.

    Arguments:
        path: the file that the workers read.
        seconds: the time until they are killed.
        reason: a sentence about why.
        signal_number: the scheduler's signal, or the one that stands for its notice.
        reserved: what :func:`reserve_deadline` returned, unless it has been used.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "monotonic_seconds": monotonic() + seconds,
        "unix_seconds": round(wall_time_ns() / 1e9 + seconds, 3),
        "reason": printable(reason, _LONGEST_REASON),
        "signal_number": signal_number,
    }
    data = json.dumps(content).encode() + b"\n"
    if reserved is not None and len(data) <= _RESERVED_BYTES:
        publish(reserved, path, data)
    else:
        write_atomically(path, data, mode=None)


def remove_deadline(path: str) -> None:
    """Take an announcement back: its round is over."""
    with suppress(OSError):  # not written yet
        os.unlink(path)
