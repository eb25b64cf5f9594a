"""Reading and writing small files so that nobody ever sees half of one.

What does not live here: what the files mean.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_bytes", "write_all", "write_atomically"]


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` to a blocking descriptor; a single ``os.write`` may take less.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_atomically(path: str | os.PathLike[str], data: bytes | str, mode: int | None = 0o600) -> None:
    """Put ``data`` where ``path`` is, so that every reader finds the old content or the new, never a part.

    The temporary file lies beside it, has a name that cannot be guessed, and is gone if this raises.

    Arguments:
        path: the file; its folder exists.
        data: the whole content.
        mode: the permissions; ``None``: those of any new file of this process (its umask).

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    # Not by tempfile, whose import brings random, hashlib and shutil along: every agent imports this module.
    temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600)
    try:
        try:
            write_all(descriptor, data.encode() if isinstance(data, str) else data)
            if mode is not None:
                os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def read_bytes(path: str, limit: int = 1 << 20) -> bytes:
    """Return at most ``limit`` bytes of a file, nothing where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    parts = []
    try:
        while limit > 0 and (part := os.read(descriptor, min(limit, 1 << 16))):
            parts.append(part)
            limit -= len(part)
    except OSError:
        return b""  # it ended while we read, or belongs to another user
    finally:
        os.close(descriptor)
    return b"".join(parts)
