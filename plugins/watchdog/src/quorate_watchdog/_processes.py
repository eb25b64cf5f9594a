"""What /proc tells of processes: which one it is, whose descendant, what it has used.  Nothing here judges."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["ProcessTimes", "activity_of", "ancestor_among", "is_frozen_in_kernel", "started_at", "wait_channel"]

# Fields of /proc/<pid>/stat (proc_pid_stat(5)), counted from the state on.
_STATE, _PARENT, _USER_TICKS, _START = 0, 1, 11, 19
_TICK_SECONDS = 1.0 / os.sysconf("SC_CLK_TCK")
_LONGEST_LINE_OF_DESCENT = 64


def _read(path: str) -> bytes:
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


def _fields(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def started_at(pid: int) -> str:
    """Return what tells a process from a later one of the same number, ``""`` if it has ended."""
    fields = _fields(pid)
    return "" if not fields or fields[_STATE] in (b"Z", b"X") else fields[_START].decode()


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
        fields = _fields(pid)
        if not fields or pid <= 1:
            return None
        pid = int(fields[_PARENT])
        if pid in candidates:
            return pid
    return None


class ProcessTimes(NamedTuple):
    """What a worker and its descendants have used so far: CPU seconds and bytes written, by whatever means.

    ``is_runnable`` tells that one of them would compute now if it had a CPU.
    """

    cpu_seconds: float
    written_bytes: int
    is_runnable: bool


def activity_of(workers: Collection[int]) -> dict[int, ProcessTimes]:
    """Return worker -> what it and all in its session or descending from it have used; one look at all of /proc."""
    owners: dict[int, int] = {}
    table: dict[int, list[bytes]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _fields(int(name))):
            table[int(name)] = fields
    result: dict[int, ProcessTimes] = {}
    for pid, fields in table.items():
        owner = _owner(pid, table, workers, owners)
        if not owner:
            continue
        # Own time and that of children who have ended: user, system, and both once more.
        ticks = sum(int(field) for field in fields[_USER_TICKS : _USER_TICKS + 4])
        cpu, written, is_runnable = result.get(owner, ProcessTimes(0.0, 0, False))
        result[owner] = ProcessTimes(
            cpu + ticks * _TICK_SECONDS, written + _written(pid), is_runnable or fields[_STATE] == b"R"
        )
    return result


def _owner(pid: int, table: dict[int, list[bytes]], workers: Collection[int], owners: dict[int, int]) -> int:
    """Return the worker that ``pid`` belongs to, 0 for a stranger."""
    path = []
    owner = 0
    while pid not in owners:
        path.append(pid)
        if pid in workers:
            owner = pid
            break
        fields = table.get(pid)
        if fields is None or pid <= 1:
            break
        session = int(fields[3])
        if session in workers:
            owner = session
            break
        pid = int(fields[_PARENT])
    else:
        owner = owners[pid]
    for member in path:
        owners[member] = owner
    return owner


def _written(pid: int) -> int:
    for line in _read(f"/proc/{pid}/io").splitlines():
        if line.startswith(b"wchar:"):
            return int(line.split()[1])
    return 0


def is_frozen_in_kernel(pid: int) -> bool:
    """Return whether it is in a wait that no signal ends (state D)."""
    return _fields(pid)[:1] == [b"D"]


def wait_channel(pid: int) -> str:
    """Return the kernel's function in which it waits, ``"unknown"`` where that is not told."""
    name = _read(f"/proc/{pid}/wchan").decode("ascii", "replace").strip()
    return name if name not in ("", "0") else "unknown"
