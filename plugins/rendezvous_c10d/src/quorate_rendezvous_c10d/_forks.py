"""Keeps forks away from what torch does for the first time, which a child forked meanwhile could never do again.

torch's functions set up their counters when they are first called, and lock themselves meanwhile; so do the functions
of the C library that look up names.  A child that is forked while another thread is in there has the lock, and not the
thread that would release it: its own first call would wait for ever.  So a connection is opened, and every method of a
store is called for the first time, where no thread can fork this process.  A fork waits until that is done.

What does not live here: the connections (:mod:`._connection`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, final

__all__ = ["GuardedStore", "no_fork"]

#: A fork waits no longer: a thread that is busy for longer waits for an answer, and is seldom where a lock is held.
_LONGEST_SECONDS = 10.0

#: The threads that must not be forked away.
_busy: list[int] = []
_busy_changed = threading.Condition()
#: The methods that have been called in this process, or in the one that it was forked from.
_known: set[str] = set()


@contextmanager
def no_fork() -> Iterator[None]:
    """While a thread is in here, no other thread forks this process."""
    own = threading.get_ident()
    try:
        with _busy_changed:
            _busy.append(own)
        yield
    finally:
        with _busy_changed, suppress(ValueError):  # in a forked child the list is empty
            _busy.remove(own)
            _busy_changed.notify_all()


def _before() -> None:
    """Wait until no other thread is busy; none begins until the fork is made."""
    own = threading.get_ident()
    _busy_changed.acquire()
    _busy_changed.wait_for(lambda: all(thread == own for thread in _busy), _LONGEST_SECONDS)


def _in_parent() -> None:
    _busy_changed.release()


def _in_child() -> None:
    global _busy_changed
    _busy_changed = threading.Condition()
    _busy.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


@final
class GuardedStore:
    """A store of torch whose methods are called for the first time under :func:`no_fork`.

    A first call should not wait for long; see :meth:`has_called`.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)  # an older torch lacks some
        return method if name in _known else _guarded(name, method)

    @staticmethod
    def has_called(name: str) -> bool:
        """Return whether a method of that name has been called in this process."""
        return name in _known


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with no_fork():
            try:
                return method(*arguments, **options)
            finally:
                _known.add(name)

    return call
