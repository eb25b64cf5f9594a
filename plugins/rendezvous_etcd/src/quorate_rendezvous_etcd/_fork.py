"""What a forked child must not touch: gRPC's connections, whose threads exist in the parent alone.

Using one in the child fails or hangs, and so may its being torn down there: a child keeps its copies, unused, until it
ends.  Starting a program (exec, posix_spawn) is not affected.
"""

from __future__ import annotations

import os
import weakref
from importlib import import_module
from typing import Any, Protocol

__all__ = ["close_in_children", "load_grpc"]

_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def load_grpc() -> Any:
    """Return the module ``grpc``, with its own fork handlers off unless somebody chose otherwise.

    They are for children that go on to use gRPC, which ours never do, and they crash about one child in thirteen
    when other threads are inside gRPC at the moment of the fork.  gRPC reads the variable once, when it is first
    used, so it stands in the environment no longer than that.
    """
    if _FORK_SUPPORT in os.environ:
        return import_module("grpc")
    os.environ[_FORK_SUPPORT] = "0"
    try:
        grpc = import_module("grpc")
        grpc.insecure_channel("127.0.0.1:1").close()
        return grpc
    finally:
        os.environ.pop(_FORK_SUPPORT, None)  # another agent of this process may have taken it away


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
