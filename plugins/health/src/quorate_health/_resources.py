"""The checks of what the kernel still grants this process: memory and open files.

Each returns ``None``, or one sentence that names the trouble and the remedy.  Memory is limited by the machine, or by a
control group of either version; see cgroups(7) and the kernel's ``cgroup-v1/memory`` and ``cgroup-v2`` documents.
"""

from __future__ import annotations

import os

from quorate.files import read_bytes
from quorate.proc import ControlGroup, memory_groups
from quorate.text import whole_number

MEGABYTE = 1_000_000
#: A v1 group without a limit says about 2**63; no machine has this much.
_NO_LIMIT = 1 << 60


def check_open_files(least: float) -> str | None:
    """Judge the limit that workers inherit, and that an agent of many workers needs itself."""
    limit = os.sysconf("SC_OPEN_MAX")  # the soft limit of this process; -1: none
    if limit < 0 or limit >= least:
        return None
    return f"a process may open {limit} files, fewer than open_files={least:.15g}; raise the limit (ulimit -n)"


def check_memory(least: float) -> str | None:
    """Judge what is left to this process; ``least`` is in megabytes."""
    available, group = available_memory()
    if available >= least * MEGABYTE:
        return None
    where = f" of the control group {group}" if group else ""
    return (
        f"{available // MEGABYTE} MB of memory{where} are free, fewer than memory_free_mb={least:.15g}; "
        "end other programs, or give this one more"
    )


def available_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> tuple[int, str]:
    """Return the bytes that are left, and the control group that leaves so little; empty if it is the machine.

    A group's page cache counts as free, because the kernel reclaims it before it refuses anything.  Groups are nested,
    each with a limit of its own, so all from this process's own to the root are read.
    """
    least, tightest = _fields(f"{proc}/meminfo").get("MemAvailable:", _NO_LIMIT >> 10) << 10, ""
    for group in memory_groups(proc, cgroup):
        left = _left_in(group)
        if left is not None and left < least:
            least, tightest = left, group.name
    return least, tightest


def _left_in(group: ControlGroup) -> int | None:
    is_v1 = group.version == 1
    limit = _number(f"{group.folder}/memory.{'limit_in_bytes' if is_v1 else 'max'}")
    used = _number(f"{group.folder}/memory.{'usage_in_bytes' if is_v1 else 'current'}")
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    stat = _fields(f"{group.folder}/memory.stat")
    prefix = "total_" if is_v1 else ""
    cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(0, limit - used + cache)


def _number(path: str) -> int | None:
    return whole_number(read_bytes(path).decode("utf-8", "replace").strip())


def _fields(path: str) -> dict[str, int]:
    """Return name -> number of a file of lines ``name number ...``."""
    words = [line.split() for line in read_bytes(path).decode("utf-8", "replace").splitlines()]
    return {parts[0]: number for parts in words if len(parts) > 1 and (number := whole_number(parts[1])) is not None}
