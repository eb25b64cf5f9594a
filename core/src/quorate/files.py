"""Reading and writing small files: reads are bounded, and no reader finds a part of what was written.

What does not live here: what the files mean.
"""

from __future__ import annotations

import os
import stat

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
    """Replace the file ``path`` by ``data``; every reader finds the old content or the new, never a part.

    The temporary file lies in the same folder, has a random name, and is gone if this raises.

    Arguments:
        path: the file; its folder exists.
        data: the whole content.
        mode: the permissions; ``None``: those of any new file of this process (its umask).

    Raises:
        OSError: it cannot be written.
    """
    # Not by tempfile, which imports random, hashlib and shutil: every agent imports this module.  The name of the file
    # may be as long as the file system permits, so the temporary name does not contain it.
    temporary = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600)
    try:
        try:
            write_all(descriptor, data.encode() if isinstance(data, str) else data)
            if mode is not None:
                os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_bytes(path: str, limit: int = 1 << 20, *, regular: bool = False) -> bytes:
    """Return at most ``limit`` bytes of a file, nothing where it cannot be read or, if ``regular``, is of another kind.

    Never blocks on a pipe or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    parts = []
    try:
        if regular and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        while limit > 0 and (part := os.read(descriptor, min(limit, 1 << 16))):
            parts.append(part)
            limit -= len(part)
    except OSError:
        return b""  # in /proc: the process has ended, or belongs to another user
    finally:
        os.close(descriptor)
    return b"".join(parts)
