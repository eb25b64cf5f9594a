"""Descriptors that a worker is given: how one travels in a pickle, and files in memory that carry large data.

Imported in function workers, so it imports little.  The agent's own descriptors are held by :mod:`quorate.proc`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, final

from quorate.files import write_all
from quorate.notices import warn

__all__ = ["Handle", "memory_file", "read_all"]


@final
class Handle:
    """A descriptor that a worker may be given in a pickle."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], Handle], tuple[Any]]:
        from multiprocessing import reduction  # in the agent only; a command's worker never has it

        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> Handle:
    return Handle(duplicate.detach())


def memory_file(name: str, data: bytes | memoryview) -> int:
    """Return a descriptor of an unnamed file in memory that holds ``data``, or of one on disk without memfd_create(2).

    Raises:
        OSError: there is no space or no descriptor for it.
    """
    descriptor = _make_memory_file(name)
    try:
        write_all(descriptor, data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make_memory_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(name)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
    import tempfile  # 40 ms, for kernels and sandboxes without memfd_create only

    folder, wanted = tempfile.gettempdir(), os.environ.get("TMPDIR")
    if wanted and os.path.abspath(wanted) != folder:
        warn(f"TMPDIR is {wanted}, which is missing, full or not writable; {folder} is used instead")
    descriptor, path = tempfile.mkstemp(prefix=f"{name}-", dir=folder)
    os.unlink(path)
    return descriptor


def read_all(descriptor: int) -> bytes:
    """Return everything in the file ``descriptor`` from its start."""
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
