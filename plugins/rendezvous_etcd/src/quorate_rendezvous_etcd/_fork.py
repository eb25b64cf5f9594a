"""What a forked child must not touch: gRPC's connections, whose threads exist in the parent alone.

Using one in the child fails or hangs, and so may its being torn down there: a child keeps its copies, unused, until it
ends.  Starting a program (exec, posix_spawn) is not affected.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

__all__ = ["close_in_children"]


class Holder(Protocol):
    """Owns connections."""

    def close_after_fork(self) -> list[Any]:
        """Refuse from now on; takes no lock.  Returns what must never be torn down in this process."""
        ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_kept: list[Any] = []
_registered = False


def close_in_children(holder: Holder) -> None:
    """Have every child that this process forks from now on leave alone what ``holder`` holds."""
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_close_all)
        _registered = True
    _holders.add(holder)


def _close_all() -> None:
    for holder in list(_holders):
        _kept.append(holder.close_after_fork())
    _holders.clear()
