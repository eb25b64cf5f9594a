"""What the kernel says of a worker and its descendants."""

from __future__ import annotations

import os
from typing import final

from attrs import frozen

__all__ = ["Usage", "usage_of"]

#: A worker with more descendants than that is measured in part.
_MOST_PROCESSES = 256
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@final
@frozen
class Usage:
    """Resident memory of a process and its descendants, with pages that they share counted once for each."""

    memory_bytes: int
    processes: int


def usage_of(pid: int) -> Usage | None:
    """Return what a process and its descendants use; ``None`` if it is gone."""
    memory, count = 0, 0
    waiting, seen = [pid], {pid}
    while waiting and count < _MOST_PROCESSES:
        current = waiting.pop()
        resident = _resident_bytes(current)
        if resident is None:
            continue
        memory, count = memory + resident, count + 1
        children = _children(current) - seen
        seen |= children
        waiting += children
    return Usage(memory, count) if count else None


def _resident_bytes(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return None


def _children(pid: int) -> set[int]:
    result: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                result.update(map(int, file.read().split()))
    except OSError:
        pass  # it, or one of its threads, has just ended
    return result
