"""Files in memory that carry large data to a worker.

Imported in function workers, so it imports little.  What does not live here: the descriptors that the agent keeps to
itself (:mod:`quorate.proc`).
"""

from __future__ import annotations

import errno
import os

from quorate.files import temporary_folder, write_all
from quorate.notices import warn

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def memory_file(name: str, data: bytes | memoryview) -> int:
    """Return a descriptor of an unnamed file in memory that holds ``data``, or of one on disk without memfd_create(2).

    Raises:
        OSError: there is no space or no descriptor for it.
    """
    descriptor, folder = _make_memory_file(name)
    try:
        write_all(descriptor, data)
    except BaseException as error:
        os.close(descriptor)
        if folder and isinstance(error, OSError) and error.errno in _NO_SPACE:
            needed = f"{len(data):,} bytes for a worker do not fit into {folder}"
            raise OSError(error.errno, f"{error.strerror}: {needed}; set TMPDIR to a folder with more space") from None
        raise
    return descriptor


def _make_memory_file(name: str) -> tuple[int, str]:
    """Return a descriptor, and the folder of its file if that is on disk."""
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(name), ""
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
    folder, problem = temporary_folder(os.environ)
    if problem:
        warn(f"{problem}; {folder} is used instead")
    path = os.path.join(folder, f"{name}-{os.urandom(8).hex()}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return descriptor, folder


def read_all(descriptor: int) -> bytes:
    """Return everything in the file ``descriptor`` from its start."""
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
