"""What a warm worker does for a function entrypoint, with the parts of ``multiprocessing``; imported by the template.

What does not live here: the agent's side (:mod:`._warm`).
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from multiprocessing import context, process, reduction, resource_tracker, spawn
from typing import Any, final

from . import _task as _task
from ._memory_file import read_all

#: The words after the interpreter in the command of such a worker.
COMMAND = ("-c", "from quorate_process_local._warm_call import main; main()")
#: In a worker: the packed task, the resource tracker's descriptor (the task's again where there is no tracker), and
#: the descriptors that the task refers to.
inherited: list[int] = []


@final
class _Received:
    """A descriptor in a pickle, known by its place among those that came with the message."""

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        return inherited[2 + self._place]


@final
class _Passing:
    """Stands for the process that is being started while its task is pickled; collects its descriptors."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def DupFd(self, place: int) -> _Received:  # noqa: N802 - multiprocessing calls it so
        return _Received(place)

    def duplicate_for_child(self, descriptor: int) -> int:
        """Take ``descriptor`` along; return its place."""
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1


def pack(task_process: process.BaseProcess) -> tuple[bytes, list[int]]:
    """In the agent: return the pickled process, as ``spawn`` would pass it, and the descriptors it refers to."""
    passing: Any = _Passing()
    message = io.BytesIO()
    context.set_spawning_popen(passing)
    try:
        reduction.dump(spawn.get_preparation_data(task_process.name), message)
        reduction.dump(task_process, message)
    finally:
        context.set_spawning_popen(None)
    return message.getvalue(), passing.descriptors


def main() -> None:
    """In the worker: run the task, and end as it says."""
    packed, tracker = inherited[:2]
    message = io.BytesIO(read_all(packed))
    has_tracker = not os.path.sameopenfile(tracker, packed)
    os.close(packed)
    if has_tracker:
        resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined] # as spawn's main does
    else:
        os.close(tracker)
    this: Any = process.current_process()
    this._inheriting = True
    try:
        spawn.prepare(pickle.load(message))
        task_process = pickle.load(message)
    finally:
        del this._inheriting
    try:
        sentinel = os.pidfd_open(os.getppid())  # readable once the agent is dead
    except (AttributeError, OSError):
        sentinel = None
    sys.exit(task_process._bootstrap(parent_sentinel=sentinel))
