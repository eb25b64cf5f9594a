"""What workers and their descendants have used so far, as /proc shows it.  :mod:`._silence` judges it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import final

from attrs import frozen

from quorate.proc import ProcessStat, stat_of, written_bytes

_LONGEST_DESCENT = 64


@final
@frozen
class ProcessTimes:
    """What a worker and its descendants have used so far: CPU seconds, and bytes written to anything.

    ``is_runnable`` is true if one of them runs, or would run if it had a CPU.
    """

    cpu_seconds: float
    written_bytes: int
    is_runnable: bool


def activity_of(workers: Collection[int]) -> dict[int, ProcessTimes]:
    """Return worker -> what it and all in its session or descending from it have used; reads all of /proc once."""
    table = {int(name): stat for name in os.listdir("/proc") if name.isdecimal() and (stat := stat_of(int(name)))}
    result: dict[int, ProcessTimes] = {}
    for pid, stat in table.items():
        owner = _owner_of(pid, table, workers)
        if owner is None:
            continue
        sum_so_far = result.get(owner, ProcessTimes(0.0, 0, False))
        result[owner] = ProcessTimes(
            sum_so_far.cpu_seconds + stat.cpu_seconds,
            sum_so_far.written_bytes + written_bytes(pid),
            sum_so_far.is_runnable or stat.state == "R",
        )
    return result


def _owner_of(pid: int, table: Mapping[int, ProcessStat], workers: Collection[int]) -> int | None:
    """Return the worker that ``pid`` belongs to.

    Like :func:`quorate.proc.ancestor_among`, but from ``table``: a machine may have thousands of processes.
    """
    for _ in range(_LONGEST_DESCENT):
        if pid in workers:
            return pid
        stat = table.get(pid)
        if stat is None:
            return None
        if stat.session in workers:
            return stat.session
        pid = stat.parent
    return None
