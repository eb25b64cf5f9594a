"""Reading and writing small files: reads are bounded, and no reader finds a part of what was written.

What does not live here: what the files mean.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress

__all__ = [
    "open_regular",
    "publish",
    "read_bytes",
    "read_regular",
    "reserve",
    "temporary_folder",
    "write_all",
    "write_atomically",
    "write_byte",
]

#: How file systems refuse files without a name: most network file systems, and old kernels.
_NO_NAMELESS_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
#: What no other folder mends: this process, or the system, can open no further file.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


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
    # Not by tempfile, which imports random, hashlib and shutil: every agent imports this module.
    temporary = _temporary_name(path)
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
        with suppress(OSError):  # the folder is gone, or the file system became read-only: the first error counts
            os.unlink(temporary)
        raise


def write_byte(folder: str, nameless: int = os.O_TMPFILE, write: Callable[[int, bytes], object] = os.write) -> None:
    """Write one byte into a file in ``folder`` that is gone afterwards, even if this process dies.

    A disk that is full still takes folders and empty files.

    Arguments:
        folder: an existing folder.
        nameless: the flag of ``open`` for a file without a name.
        write: writes to a descriptor.

    Raises:
        OSError: it cannot be written.
    """
    try:
        descriptor = os.open(folder, nameless | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        path = ""
    except OSError as error:
        if error.errno not in _NO_NAMELESS_FILES:
            raise
        path = os.path.join(folder, f".quorate-{os.getpid()}-{os.urandom(4).hex()}")
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        write(descriptor, b"\n")
    finally:
        if path:
            os.unlink(path)
        os.close(descriptor)  # a full server or a quota may be reported only here


def reserve(folder: str, size: int) -> int | None:
    """Take the space of a small file now, for a time when the disk may be full.

    The file has no name, so nothing is left if this process dies.

    Arguments:
        folder: an existing folder.
        size: the bytes to take.

    Returns:
        The file's descriptor, for :func:`publish`; ``None`` where the space or a file without a name cannot be had.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        write_all(descriptor, bytes(size))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def publish(descriptor: int, path: str, data: bytes) -> None:
    """Replace the file ``path`` by ``data``, in the space that :func:`reserve` took; it takes no more.

    Arguments:
        descriptor: the reserved file, whose space is used up by this; it stays open.
        path: a file in the folder that was given to :func:`reserve`.
        data: the whole content, no longer than the space.

    Raises:
        OSError: it cannot be written.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_all(descriptor, data)
    os.ftruncate(descriptor, len(data))
    temporary = _temporary_name(path)
    # Gives the file its first name.  Links are followed only where a folder's descriptor is given, which is not used.
    os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=descriptor, follow_symlinks=True)
    os.replace(temporary, path)


def _temporary_name(path: str | os.PathLike[str]) -> str:
    # The name of the file may be as long as the file system permits, so the temporary name does not contain it.
    return os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.tmp")


def temporary_folder(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return where temporary files go, and a sentence about the first place that cannot be used, if there is one.

    The places are those of Python's ``tempfile``, which imports more than a launch has time for.  The one that is
    returned exists and takes a byte.

    Arguments:
        environment: may have ``TMPDIR``, ``TEMP`` and ``TMP``.

    Raises:
        OSError: no place can be used; it is the error of the first one, whose name is its ``filename``.
    """
    chosen = [place for variable in ("TMPDIR", "TEMP", "TMP") if (place := environment.get(variable))]
    problem = ""
    first: OSError | None = None
    for place in (*chosen, "/tmp", "/var/tmp", "/usr/tmp", "."):
        try:
            write_byte(os.path.abspath(place))
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                raise
            if first is None:
                first, problem = error, f"{place} cannot be used for temporary files: {error.strerror}"
                first.filename = place
        else:
            return os.path.abspath(place), problem
    assert first is not None
    raise first


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


# --- files that a worker could have replaced --------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Return a close-on-exec descriptor of the regular file at ``path``; nothing waits.

    A symbolic link, FIFO, socket or device at ``path`` is refused.  So is a file of a foreign owner, such as a hard
    link to a file that only this process may read.  Its owner must be this user, or the owner of its folder (a network
    file system may show every file of a user under another id).

    Arguments:
        path: the file; links in its folders are followed.
        flags: of :func:`os.open`, for example ``os.O_WRONLY | os.O_APPEND``.

    Raises:
        OSError: there is no such file, or it is refused.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        if status.st_uid != os.geteuid() and status.st_uid != os.stat(os.path.dirname(path) or ".").st_uid:
            raise PermissionError(errno.EPERM, "belongs to another user", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], limit: int, *, from_end: bool = False) -> bytes:
    """Return at most ``limit`` bytes of a file that :func:`open_regular` opens, ``b""`` where it cannot be read.

    Arguments:
        path: the file.
        limit: in bytes; pass one more than is allowed to see whether the file is larger.
        from_end: return the last bytes rather than the first.
    """
    try:
        descriptor = open_regular(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return b""
    try:
        offset = max(0, os.fstat(descriptor).st_size - limit) if from_end else 0
        parts = []
        while limit > 0 and (part := os.pread(descriptor, min(limit, 1 << 20), offset)):
            parts.append(part)
            offset += len(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
