"""Counting the processes that the kernel killed for want of memory.

A worker is dead, and its ``/proc`` entry gone, when its agent asks why.  But its control group is the agent's own or
one below, whose counters include it; so a counter that has risen since the last look, together with a SIGKILL that
nobody of ours sent, is as good an answer as the kernel gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

__all__ = ["MemoryKills", "counter_files"]


@final
class MemoryKills:
    """How many kills ``files`` have counted since this was made; each is handed out once.

    Each file is a list of ``name number`` lines, one of which is ``oom_kill``; the first that has it is used.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._file = next((path for path in files if _count(path) is not None), None)
        self._seen = self._count()

    def _count(self) -> int:
        return (_count(self._file) or 0) if self._file is not None else 0

    def take(self) -> bool:
        """Return whether one more process was killed than was asked about so far."""
        if self._count() <= self._seen:
            return False
        self._seen += 1
        return True


def counter_files() -> list[str]:
    """Return where this process's kills may be counted, the most specific first.

    cgroup v2 ``memory.events`` and v1 ``memory.oom_control`` of its own group (see cgroups(7)); else the whole
    machine's ``/proc/vmstat``, which also counts strangers.
    """
    files = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        group = group.rstrip("/")
        if hierarchy == "0":
            # Inside a container the group may be named as its host sees it, while the mount shows it as the root.
            files += [f"/sys/fs/cgroup{group}/memory.events", "/sys/fs/cgroup/memory.events"]
        elif "memory" in controllers.split(","):
            files += [
                f"/sys/fs/cgroup/memory{group}/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control",
            ]
    return [*dict.fromkeys(files), "/proc/vmstat"]


def _count(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    except (OSError, ValueError):
        pass
    return None
