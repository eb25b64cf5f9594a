"""Descriptors that belong to the agent alone, pidfds, and the one way this plugin warns.

A process that the agent forks (start method ``fork``, or the user's own ``os.fork``) would inherit the write end of
the guardian's pipe and keep the guardian from noticing that the agent has died; so every descriptor held here is
closed in forked children.  Exec'd children never see them: all are close-on-exec.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

__all__ = ["forget", "hold", "hold_with", "make_pipe", "memory_file", "open_pidfd", "read_all", "release", "warn"]

_held: dict[int, Callable[[], None]] = {}


def hold(descriptor: int) -> int:
    """Close ``descriptor`` in every forked child; returns it."""
    _held[descriptor] = lambda: os.close(descriptor)
    return descriptor


def hold_with(descriptor: int, close: Callable[[], None]) -> None:
    """As :func:`hold` for an object that closes its descriptor itself."""
    _held[descriptor] = close


def forget(descriptor: int) -> None:
    """Stop holding ``descriptor`` without closing it."""
    _held.pop(descriptor, None)


def release(descriptor: int) -> None:
    """Close ``descriptor`` and stop holding it; negative ones are ignored."""
    if descriptor >= 0:
        _held.pop(descriptor, None)
        os.close(descriptor)


def _close_in_child() -> None:
    for close in list(_held.values()):
        try:
            close()
        except OSError:
            pass
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def make_pipe() -> tuple[int, int]:
    """Return ``(read end, write end)``: the read end is held and does not block, the write end is for a child."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    return hold(read_end), write_end


def memory_file(name: str) -> int:
    """Return an unnamed file in memory (on disk where the kernel has none): never full like a pipe, never blocks."""
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(name)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix=name)
    os.unlink(path)
    return descriptor


def read_all(descriptor: int) -> bytes:
    """Return everything in the file ``descriptor`` from its start."""
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def open_pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when ``pid`` ends; -1 where the kernel offers none.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return hold(os.pidfd_open(pid))
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return -1


def warn(sentence: str) -> None:
    """Tell the person at the console; never raises."""
    try:
        sys.stderr.write(f"quorate: warning: {sentence}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass
