"""The watchdog's thread: asleep in the kernel while no worker writes and no timer ends.

Most programs never write anything, so what is done with it (:mod:`._timekeeper`) is imported when somebody has.  What
else does not live here: the pipes (:mod:`._channels`) and silence (:mod:`._silence`).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from quorate.clock import monotonic

from ._channels import Channel

if TYPE_CHECKING:
    from quorate.services import AgentView

    from ._timekeeper import Timekeeper

__all__ = ["CLOSE_SECONDS", "TimerServer"]

#: Messages are taken in gulps, so that workers with short steps do not keep the agent busy.
_GULP_SECONDS = 0.01
#: How long the agent's end waits for a thread of the watchdog's.
CLOSE_SECONDS = 2.0


@final
class TimerServer:
    """Serves ``channels`` until :meth:`close`.

    Arguments:
        agent: told of heartbeats and hung workers.
        channels: where workers write; they stay the caller's.
        heartbeat_timeout: seconds after a heartbeat within which the next one must come, 0 for any time.
    """

    def __init__(self, agent: AgentView, channels: Sequence[Channel], heartbeat_timeout: float = 0.0) -> None:
        self._agent, self._channels, self._heartbeat_timeout = agent, channels, heartbeat_timeout
        self._keeper: Timekeeper | None = None
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="quorate-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """End the thread; return whether it has ended, so that the channels are free to go.

        It may be stuck where nobody can help, such as on a console that takes no more output; the agent goes on.
        """
        self._is_closing = True
        os.eventfd_write(self._bell, 1)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            return False
        os.close(self._bell)
        return True

    def _run(self) -> None:
        from signal import SIG_BLOCK, pthread_sigmask, valid_signals

        pthread_sigmask(SIG_BLOCK, valid_signals())  # the agent's own thread is the one to be interrupted
        readers = [channel.reader for channel in self._channels]
        everything, bell = select.poll(), select.poll()
        for descriptor in (self._bell, *readers):
            everything.register(descriptor, select.POLLIN)
        bell.register(self._bell, select.POLLIN)
        while not self._is_closing:
            deadline = None if self._keeper is None else self._keeper.next_deadline()
            found = everything.poll(None if deadline is None else max(0.0, (deadline - monotonic()) * 1000.0))
            ready = [descriptor for descriptor, _ in found if descriptor != self._bell]
            if self._keeper is None:
                if not ready:
                    continue
                self._keeper = self._make_keeper(readers)
            self._keeper.take(ready, deadline)
            if found:
                bell.poll(_GULP_SECONDS * 1000.0)

    def _make_keeper(self, readers: Sequence[int]) -> Timekeeper:
        for channel in self._channels:
            channel.enlarge()  # before all else: somebody is writing
        from ._timekeeper import Timekeeper

        return Timekeeper(self._agent, readers, self._heartbeat_timeout)
