"""How much memory this process may still have: the machine's, or less where a control group says so.

What does not live here: the judgement (``_node``).  Both versions of control groups are read; see cgroups(7) and the
kernel's ``cgroup-v1/memory`` and ``cgroup-v2`` documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

__all__ = ["available_memory"]

#: A v1 group without a limit says about 2**63; no machine has this much.
_NO_LIMIT = 1 << 60


def available_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> tuple[int, str]:
    """Return the bytes that are left, and the control group that leaves so little; empty if it is the machine.

    A group's page cache counts as free: the kernel gives it back before it refuses anything.  Groups are nested, and
    each has its own limit, so all from this process's own to the root are asked.
    """
    least, culprit = _machine(proc), ""
    for folder, name, v2 in _groups(proc, cgroup):
        left = _left_in(folder, v2)
        if left is not None and left < least:
            least, culprit = left, name
    return least, culprit


def _machine(proc: str) -> int:
    return _fields(f"{proc}/meminfo").get("MemAvailable:", _NO_LIMIT >> 10) << 10


def _groups(proc: str, cgroup: str) -> Iterator[tuple[str, str, bool]]:
    """Yield ``(folder, name, is v2)`` of the memory groups that this process is in, innermost first."""
    for line in _text(f"{proc}/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        v2 = hierarchy == "0"
        if not v2 and "memory" not in controllers.split(","):
            continue
        root = cgroup if v2 else f"{cgroup}/memory"
        # In a container the path may be the host's, and the root of the mount the container's own group.
        path = path.rstrip("/")
        while path:
            yield root + path, path, v2
            path = path.rpartition("/")[0]
        yield root, "/", v2


def _left_in(folder: str, v2: bool) -> int | None:
    limit = _number(f"{folder}/memory.{'max' if v2 else 'limit_in_bytes'}")
    used = _number(f"{folder}/memory.{'current' if v2 else 'usage_in_bytes'}")
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    stat = _fields(f"{folder}/memory.stat")
    prefix = "" if v2 else "total_"
    cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(0, limit - used + cache)


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _fields(path: str) -> dict[str, int]:
    """Return name -> number of a file of lines ``name number ...``."""
    words = [line.split() for line in _text(path).splitlines()]
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1 and parts[1].isdecimal()}


def _text(path: str) -> str:
    """Return what is in a file of the kernel's, nothing if it cannot be read.  (A file object takes thrice as long.)"""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    data = b""
    try:
        while part := os.read(descriptor, 65536):
            data += part
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return data.decode("utf-8", "replace")
