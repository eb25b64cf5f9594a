"""The checks that compare with what they found before: the wall clock and the rendezvous store.

Each returns ``None``, or one sentence that names the trouble and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from quorate.clock import boot_seconds, wall_time_ns
from quorate.errors import StoreUnavailableError
from quorate.records import AgentPhase
from quorate.services import AgentView

#: The timeout of a read of the store where no limit is set.
_STORE_TIMEOUT_SECONDS = 5.0
#: A store that takes longer is reported to people, though without a limit it is not a reason to leave.
_SLOW_STORE_MS = 1000.0
#: A step of the wall clock from which on it is reported to people, likewise.
_LARGE_STEP_SECONDS = 60.0


def _wall_clock_offset() -> float:
    return wall_time_ns() / 1e9 - boot_seconds()


@final
class ClockWatch:
    """Notices that the wall clock was set since this was made.  That is a reason to leave only where a limit was set.

    Its consequences are hard to trace back: log lines out of order, certificates that are not valid yet.  But nothing
    that quorate measures goes by that clock, and a node whose clock was wrong at its start is healthy once it is right.
    Time for which the machine was suspended is not a step, and neither is a correction of the clock's speed.

    Arguments:
        offset: returns the seconds from the machine's boot clock to its wall clock.
    """

    def __init__(self, offset: Callable[[], float] = _wall_clock_offset) -> None:
        self._offset = offset
        self._first = self._reported = offset()

    def check(self, agent: AgentView, most: float | None) -> str | None:
        """Judge the difference; ``most`` is in seconds, ``None``: report a large step to people, no more."""
        now = self._offset()
        step = now - self._first
        found = (
            f"the wall clock was set {'forward' if step > 0 else 'back'} by {abs(step):.1f} s since this agent began"
        )
        if most is not None:
            if abs(step) <= most:
                return None
            return f"{found}, more than clock_step_s={most:g}; let the time service settle, then start the agent again"
        if abs(now - self._reported) > _LARGE_STEP_SECONDS:
            self._reported = now
            agent.say(f"{found}; times in its logs jump there")
        return None


@final
class StoreWatch:
    """Measures the store.  A slow one is a reason to leave only where a limit was set.

    The store may be slow or away for every node, and the protocol has a timeout of its own for that
    (``store_outage_timeout``).  A job whose nodes all left because of it would gain nothing.
    """

    def __init__(self) -> None:
        self._is_known_slow = False

    def check(self, agent: AgentView, most: float | None) -> str | None:
        """Judge one read; ``most`` is in milliseconds, ``None``: report a slow store to people, no more."""
        if most is None and agent.snapshot().phase == AgentPhase.CHECKING:
            return None  # joining reads the store at once, and a node that comes back has no time for another read
        timeout = _STORE_TIMEOUT_SECONDS if most is None else min(most / 1000, 60.0)
        try:
            latency = agent.store_latency(timeout)
        except StoreUnavailableError:
            found = f"did not answer within {timeout * 1000:.0f} ms"
        else:
            if latency is None or latency * 1000 <= (_SLOW_STORE_MS if most is None else most):
                self._is_known_slow = False
                return None
            found = f"took {latency * 1000:.0f} ms to answer"
        if most is not None:
            return (
                f"the rendezvous store {found}, more than store_latency_ms={most:g}; look at its host and the network"
            )
        if not self._is_known_slow:
            self._is_known_slow = True
            agent.say(f"the rendezvous store {found}; look at its host and the network")
        return None
