"""What /proc tells of a process: which one it is, and whose descendant.  What it uses is :mod:`._activity`'s matter."""

from __future__ import annotations

import os
from collections.abc import Collection

__all__ = [
    "PARENT",
    "STATE",
    "ancestor_among",
    "fields_of",
    "is_frozen_in_kernel",
    "read",
    "started_at",
    "wait_channel",
]

# Fields of /proc/<pid>/stat (proc_pid_stat(5)), counted from the state on.
STATE, PARENT, _START = 0, 1, 19
_LONGEST_LINE_OF_DESCENT = 64


def read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def fields_of(pid: int) -> list[bytes]:
    return read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def started_at(pid: int) -> str:
    """Return what tells a process from a later one of the same number, ``""`` if it has ended."""
    fields = fields_of(pid)
    return "" if not fields or fields[STATE] in (b"Z", b"X") else fields[_START].decode()


def ancestor_among(pid: int, candidates: Collection[int]) -> int | None:
    """Return which of ``candidates`` a living process is, or descends from."""
    try:
        # A worker leads a session; what it started mostly stays there, even once its parents have ended.
        session = os.getsid(pid)
    except OSError:
        return None
    if pid in candidates:
        return pid
    if session in candidates:
        return session
    for _ in range(_LONGEST_LINE_OF_DESCENT):
        fields = fields_of(pid)
        if not fields or pid <= 1:
            return None
        pid = int(fields[PARENT])
        if pid in candidates:
            return pid
    return None


def is_frozen_in_kernel(pid: int) -> bool:
    """Return whether it is in a wait that no signal ends (state D)."""
    return fields_of(pid)[:1] == [b"D"]


def wait_channel(pid: int) -> str:
    """Return the kernel's function in which it waits, ``"unknown"`` where that is not told."""
    name = read(f"/proc/{pid}/wchan").decode("ascii", "replace").strip()
    return name if name not in ("", "0") else "unknown"
