"""How the agent starts a function in a warm worker, with the parts of ``multiprocessing``.

What does not live here: commands (:mod:`._warm`), and what the worker does (:mod:`._warm_call`).
"""

from __future__ import annotations

import os
import sys
from multiprocessing import resource_tracker, util
from typing import Any

from quorate.errors import StartError
from quorate.records import WorkerLaunch

from ._functions import prepare_call, unpicklable
from ._memory_file import memory_file
from ._spare import WorkerSource
from ._warm_call import COMMAND, pack
from ._workers import ChildProcess


def command() -> list[str]:
    """Return the command of a worker that calls a function, with the interpreter's options of this process."""
    options: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined] # as spawn does
    return [sys.executable, *options, *COMMAND]


def start_function(
    source: WorkerSource, launch: WorkerLaunch, order: dict[str, Any], descriptors: list[int], address: bytes
) -> ChildProcess:
    """Have one worker forked that makes ``launch``'s call; ``order`` is that of a command."""
    if launch.error_file:
        order["environment"].setdefault("TORCHELASTIC_ERROR_FILE", launch.error_file)
    task, process = prepare_call("spawn", launch, None, address)
    packed = -1
    try:
        data, referred = pack(process)
        packed = memory_file("quorate-task", data)
        tracker = getattr(getattr(resource_tracker, "_resource_tracker", None), "_fd", None)
        passed = [*descriptors, packed, packed if tracker is None else tracker, *referred]
        return ChildProcess(source.fork(order, passed, launch.local_rank))
    except StartError:
        raise
    except Exception as error:
        raise unpicklable(launch, "warm", error) from error
    finally:
        if packed >= 0:
            os.close(packed)
        task.close()
