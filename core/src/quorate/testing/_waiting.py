"""What tests ask again and again: whether something holds by now, whether a store answers, and what is left open."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from ..clock import monotonic, sleep
from ..errors import StoreLostError, StoreUnavailableError
from ..rendezvous import RendezvousHandler

_PAUSE_SECONDS = 0.01
_T = TypeVar("_T")


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


def answered(call: Callable[[], _T], seconds: float = 60.0) -> _T:
    """Make a call until the store answers, as agents do: on a busy machine a short operation timeout may not suffice.

    Raises:
        StoreUnavailableError: there was no answer within ``seconds``.
        StoreLostError: the store is lost for good.
    """
    end = monotonic() + seconds
    while True:
        try:
            return call()
        except StoreUnavailableError as error:
            if isinstance(error, StoreLostError) or monotonic() >= end:
                raise


def someone_waits(handler: RendezvousHandler) -> bool:
    """Return whether nodes wait to get in, as far as the store has said: it may be slow to answer."""
    try:
        return handler.num_nodes_waiting() > 0
    except StoreUnavailableError:
        return False  # the caller asks again, until a deadline of its own


def open_descriptors() -> set[str]:
    """Return the descriptors that this process has open: ``"<number> <target>"``, as /proc has it; else nothing.

    A test that leaves none behind ends with a subset of those with which it began: an earlier test's may have been
    closed meanwhile.
    """
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the descriptor of this very listing
    return found
