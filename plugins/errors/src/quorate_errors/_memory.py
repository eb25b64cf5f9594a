"""Counts the processes that the kernel killed because memory ran out.

A worker is dead, and its ``/proc`` entry gone, when its agent asks why.  Its control group is the agent's own or one
below, and the group's counter includes it.  A counter that has risen since the last look, together with a SIGKILL that
the agent did not send, is as good an answer as the kernel gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from quorate.files import read_bytes
from quorate.proc import memory_groups

#: The file of a group that has the counter, by the version of control groups (cgroups(7)).
_COUNTERS = {1: "memory.oom_control", 2: "memory.events"}


@final
class MemoryKills:
    """How many kills ``files`` have counted since this was made; each is handed out once.

    Each file is a list of ``name number`` lines, one of which is ``oom_kill``; the first that has it is used.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._file = next((path for path in files if _kills_in(path) is not None), "")
        self._seen = _kills_in(self._file) or 0

    def take(self) -> bool:
        """Return whether one more process was killed than was asked about so far."""
        if (_kills_in(self._file) or 0) <= self._seen:
            return False
        self._seen += 1
        return True


def counter_files() -> list[str]:
    """Return where this process's kills may be counted, the most specific first.

    Those of its control groups; else the whole machine's ``/proc/vmstat``, which also counts other people's processes.
    """
    groups = [f"{group.folder}/{_COUNTERS[group.version]}" for group in memory_groups()]
    return [*dict.fromkeys(groups), "/proc/vmstat"]


def _kills_in(path: str) -> int | None:
    for line in read_bytes(path).splitlines():
        name, _, number = line.partition(b" ")
        if name == b"oom_kill":
            return int(number) if number.isdigit() else None
    return None
