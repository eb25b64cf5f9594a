"""The checks of the file systems where logs and temporary files go.

Each returns ``None``, or one sentence that names the trouble and the remedy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from quorate.services import AgentView

from ._resources import MEGABYTE

__all__ = ["check_disk", "check_log_dir", "write_byte"]

#: How file systems refuse files without a name: most network file systems, and old kernels.
_NO_NAMELESS_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


def check_log_dir(agent: AgentView) -> str | None:
    """Write one byte where logs and error files will go, into a file without a name."""
    folder, remedy = _logs(agent)
    existing = _first_existing(folder)
    if not os.path.isdir(existing):
        return None  # the command is wrong, and starting the workers gives the better message
    try:
        write_byte(existing)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        return f"nothing can be written in {folder}: {problem}; {remedy}"
    return None


def check_disk(agent: AgentView, least: float) -> str | None:
    """Judge the space where logs and temporary files go; ``least`` is in megabytes."""
    for folder, remedy in dict([_logs(agent), _temporary(agent.environment)]).items():
        try:
            room = os.statvfs(_first_existing(folder))
        except OSError as error:
            return f"{folder} cannot be looked at: {error.strerror}; {remedy}"
        # A file system that reports no size (some network ones) reports no free space either.
        free = room.f_bavail * room.f_frsize
        if room.f_blocks and free < least * MEGABYTE:
            few = f"{free // MEGABYTE} MB are free in {folder}, fewer than disk_free_mb={least:g}"
            return f"{few}; make room, or {remedy}"
        if room.f_files and not room.f_favail:
            return f"no more files can be made in {folder}: its file system has no free inode; make room, or {remedy}"
    return None


def _logs(agent: AgentView) -> tuple[str, str]:
    folder = agent.snapshot().log_dir
    return (folder, "set --log-dir to another folder") if folder else _temporary(agent.environment)


def _temporary(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the folder for temporary files and the remedy; importing ``tempfile`` takes longer than all checks."""
    folders = [environment.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    return next((folder for folder in folders if os.path.isdir(folder)), "/tmp"), "set TMPDIR to another folder"


def _first_existing(path: str) -> str:
    """Return ``path``, or the first of its parents that exists; the rest is made when workers are started."""
    path = os.path.abspath(path)
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return path


def write_byte(folder: str, nameless: int = os.O_TMPFILE, write: Callable[[int, bytes], object] = os.write) -> None:
    """Write one byte into a file in ``folder`` that is gone afterwards, even if this process dies.

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
