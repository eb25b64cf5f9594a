"""What a forked child must not keep: copies of the store's sockets.

A child that held them open would hide the death of its agent from everyone on the other side.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Holder", "close_in_children"]


class Holder(Protocol):
    """Owns descriptors."""

    def close_after_fork(self) -> None:
        """Close this process's copies without a word to the other side; takes no lock."""
        ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_registered = False


def close_in_children(holder: Holder) -> None:
    """Have every child that this process forks from now on close what ``holder`` holds."""
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_close_all)
        _registered = True
    _holders.add(holder)


def _close_all() -> None:
    for holder in list(_holders):
        holder.close_after_fork()
    _holders.clear()
