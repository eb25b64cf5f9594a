"""Clocks and sleep, for the core and its plugins: the only importer of ``time``.

The state machines do not use it: they get ``now`` (seconds of a monotonic clock) with each input.  Wall time is only
written into reports for people; it is never compared between hosts.
"""

from __future__ import annotations

import time

__all__ = [
    "LONGEST_WAIT_SECONDS",
    "boot_seconds",
    "monotonic",
    "seconds_until",
    "sleep",
    "wall_seconds",
    "wall_time_ns",
]


def monotonic() -> float:
    """Return this host's monotonic time in seconds; meaningful only as a difference."""
    return time.monotonic()


#: One wait of a loop lasts this long at most, since ``poll`` and ``epoll`` take no more than 24 days.
LONGEST_WAIT_SECONDS = 86_400.0
#: Thirty years; the system call takes no more than ten times that.
_LONGEST_SLEEP_SECONDS = 1e9


def seconds_until(time: float) -> float:
    """Return the seconds until ``time`` (monotonic) for a wait: none if it has passed, and a day at most.

    A loop that waits looks at its clock again afterwards.
    """
    return min(max(0.0, time - monotonic()), LONGEST_WAIT_SECONDS)


def sleep(seconds: float) -> None:
    """Block this thread for ``seconds``, none if they are negative; for pauses that no event can end."""
    time.sleep(min(max(0.0, seconds), _LONGEST_SLEEP_SECONDS))


def boot_seconds() -> float:
    """Return seconds since the machine's boot, those that it spent suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_time_ns() -> int:
    """Return nanoseconds since the epoch, for reports."""
    return time.time_ns()


def wall_seconds() -> int:
    """Return whole seconds since the epoch, for reports."""
    return int(time.time())
