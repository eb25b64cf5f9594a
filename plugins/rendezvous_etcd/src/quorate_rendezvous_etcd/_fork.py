"""What a forked child must not keep, and what it must not find: copies of connections, and an import under way.

A child that held copies of an agent's sockets open would hide that agent's death from its etcd.  And a process that is
forked in the midst of an import gets a module lock that nobody will ever release: the child would hang as soon as it
imported the same module.
"""

from __future__ import annotations

import logging  # noqa: F401 - the reason stands beside the lock
import os
import threading
import weakref
from typing import Protocol

__all__ = ["Holder", "close_in_children", "importing"]

#: Held while this package imports what it needs; a fork waits for it.
importing = threading.RLock()
# What is imported meanwhile should not register itself for forks: a fork that waits would do the second half of its
# registration alone.  Of what is imported, logging does so; it is therefore imported above.


class Holder(Protocol):
    """Owns connections."""

    def close_after_fork(self) -> None:
        """Close this process's copies without a word to the other side, and refuse from now on; takes no lock."""
        ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def close_in_children(holder: Holder) -> None:
    """Have every child that this process forks from now on close what ``holder`` holds."""
    _holders.add(holder)


def _close_all() -> None:
    importing.release()
    for holder in list(_holders):
        holder.close_after_fork()
    _holders.clear()


os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=_close_all)
