"""Takes a coroutine out of the world that it has entered.

While a coroutine waits, its frames are not on the main thread's stack.  An exception that is raised there ends
asyncio's loop, and the coroutine only learns that it is cancelled.  So the coroutine's task is cancelled instead, and
the end of its ``with world`` recognises this cancellation as the interruption.

What does not live here: when a world may be left (:mod:`._world`).
"""

from __future__ import annotations

import sys
from typing import Any, final


@final
class EnteredTask:
    """The task of asyncio that has entered a world."""

    def __init__(self, task: Any) -> None:
        self._task, self._requests, self._has_left = task, 0, False

    def cancel_if_it_waits(self) -> bool:
        """Have the task cancelled, unless it is the one that runs; to be called in a signal handler."""
        if sys.modules["asyncio"].current_task(self._task.get_loop()) is self._task:
            return False
        self._task.get_loop().call_soon_threadsafe(self._cancel)
        return True

    def _cancel(self) -> None:
        if not self._has_left:
            self._requests += 1
            self._task.cancel("this worker's round is over")

    def leave(self, error: BaseException | None) -> bool:
        """The task leaves the world: return whether ``error`` has come from here, and nobody else has cancelled it."""
        self._has_left = True
        requests, self._requests = self._requests, 0
        others = 0
        if hasattr(self._task, "uncancel"):  # Python 3.11
            for _ in range(requests):
                others = self._task.uncancel()
        return requests > 0 and not others and isinstance(error, sys.modules["asyncio"].CancelledError)


def entered_task() -> EnteredTask | None:
    """Return the task that runs; ``None`` if what runs is not one of asyncio's."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except (RuntimeError, AttributeError):  # no loop runs; asyncio is being imported
        task = None
    return None if task is None else EnteredTask(task)
