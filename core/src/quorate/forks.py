"""Delays a fork while another thread holds a lock that the child could never release.

A child has copies of the locks that its parent's other threads held, but not those threads.  Python and the C library
release some of their own in the child.  Two kinds are left: the C library's resolver takes locks for moments, and a
function of a C++ library takes one while its static objects are made, in its first call.

What does not live here: what children do with their parent's descriptors (:mod:`quorate.net`, :mod:`quorate.proc`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .clock import monotonic

__all__ = ["no_fork"]

_LONGEST_SECONDS = 10.0

#: The threads in ``no_fork``, each with the monotonic second until which a fork waits for it.
_busy: list[tuple[int, float]] = []
_busy_changed = threading.Condition()


@contextmanager
def no_fork(longest_seconds: float = _LONGEST_SECONDS) -> Iterator[None]:
    """While a thread is in here, :func:`os.fork` waits in every other thread.

    Arguments:
        longest_seconds: how long it waits at most.  A thread that takes longer than the work itself can take waits for
            an answer, and holds no lock.
    """
    entry = threading.get_ident(), monotonic() + longest_seconds
    try:
        with _busy_changed:
            _busy.append(entry)
        yield
    finally:
        with _busy_changed, suppress(ValueError):  # a child that was forked in here has an empty list
            _busy.remove(entry)
            _busy_changed.notify_all()


def _before() -> None:
    """Wait until no other thread is busy.  Until the fork is made none begins."""
    own = threading.get_ident()
    _busy_changed.acquire()
    while (left := max((until for thread, until in _busy if thread != own), default=0.0) - monotonic()) > 0:
        _busy_changed.wait(left)


def _in_parent() -> None:
    _busy_changed.release()


def _in_child() -> None:
    global _busy_changed
    _busy_changed = threading.Condition()
    _busy.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
