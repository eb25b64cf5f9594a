"""Reading and writing small files: bounded, and without partial content.

What does not live here: what the files mean.
"""

from __future__ import annotations

import os

__all__ = ["read_bytes", "write_all", "write_atomically"]


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` to a blocking descriptor; a single ``os.write`` may take less.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_atomically(path: str | os.PathLike[str], data: bytes | str, mode: int = 0o600) -> None:
    """Replace the file ``path`` by ``data``: a reader finds the old content or the new, never a part of it.

    The temporary file lies in the same folder under a random name and is gone if this raises.  ``mode`` is subject to
    the process's umask.

    Raises:
        OSError: it cannot be written.
    """
    folder, name = os.path.split(os.fspath(path))
    # The name of the file may be as long as the file system allows, so the temporary one does not contain it.
    temporary = os.path.join(folder, f".quorate-{os.urandom(8).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        try:
            write_all(descriptor, data.encode() if isinstance(data, str) else data)
        finally:
            os.close(descriptor)
        os.replace(temporary, os.path.join(folder, name))
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
        return b""  # in /proc: the process has ended, or belongs to another user
    finally:
        os.close(descriptor)
    return b"".join(parts)
