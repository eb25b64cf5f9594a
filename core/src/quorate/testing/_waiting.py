"""Waits of tests for what nothing announces, and whether nodes wait to get into a round."""

from __future__ import annotations

from collections.abc import Callable

from ..clock import monotonic, sleep
from ..errors import StoreUnavailableError
from ..rendezvous import RendezvousHandler

__all__ = ["settles", "someone_waits"]

_PAUSE_SECONDS = 0.01


def settles(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Return whether ``condition()`` comes to hold within ``seconds``; it is asked again and again.

    For what nothing announces, such as a server that deletes what has expired, or another process that begins to
    listen.  Where there is a pipe, an event or a process to wait for, wait for that.
    """
    end = monotonic() + seconds
    while True:
        is_last = monotonic() >= end
        if condition():
            return True
        if is_last:
            return False
        sleep(_PAUSE_SECONDS)


def someone_waits(handler: RendezvousHandler) -> bool:
    """Return whether nodes wait to get in, as far as the store has said: it may be slow to answer."""
    try:
        return handler.num_nodes_waiting() > 0
    except StoreUnavailableError:
        return False  # the caller asks again, until a deadline of its own
