"""What workers and their descendants have used so far, as /proc tells.  Whether that is enough is judged elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from ._processes import PARENT, STATE, fields_of, read

__all__ = ["ProcessTimes", "activity_of"]

_USER_TICKS = 11  # of the fields, counted from the state on
_TICK_SECONDS = 1.0 / os.sysconf("SC_CLK_TCK")


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
        if name.isdecimal() and (fields := fields_of(int(name))):
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
            cpu + ticks * _TICK_SECONDS, written + _written(pid), is_runnable or fields[STATE] == b"R"
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
        pid = int(fields[PARENT])
    else:
        owner = owners[pid]
    for member in path:
        owners[member] = owner
    return owner


def _written(pid: int) -> int:
    for line in read(f"/proc/{pid}/io").splitlines():
        if line.startswith(b"wchar:"):
            return int(line.split()[1])
    return 0
