"""The watchdog's thread: waits for messages of workers and for the end of the next timer.

What does not live here: what is done then (:mod:`._timekeeper`), the pipes (:mod:`._channels`) and silence
(:mod:`._silence`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Sequence
from typing import final

from quorate.clock import seconds_until
from quorate.services import AgentView

from ._channels import Channel
from ._timekeeper import Timekeeper

#: Messages are read in batches, so that workers with short steps do not keep the agent busy.
_BATCH_SECONDS = 0.01
#: How long the agent's end waits for a thread of the watchdog.
CLOSE_SECONDS = 2.0


@final
class TimerServer:
    """Serves ``channels`` until :meth:`close`.

    Arguments:
        agent: receives heartbeats and reports of hung workers.
        channels: where workers write; they stay the caller's.
        heartbeat_timeout: seconds after a heartbeat within which the next one must come, 0 for any time.
    """

    def __init__(self, agent: AgentView, channels: Sequence[Channel], heartbeat_timeout: float = 0.0) -> None:
        self._channels = channels
        self._readers = [channel.reader for channel in channels]
        self._timekeeper = Timekeeper(agent, self._readers, heartbeat_timeout)
        self._agent = agent
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="quorate-watchdog", daemon=True)
        self._thread.start()

    def freeze(self, is_frozen: bool) -> None:
        """The workers stand still, or go on; called on the agent's thread."""
        if is_frozen:
            self._timekeeper.freeze()
        elif self._timekeeper.thaw():
            os.eventfd_write(self._wake, 1)

    def close(self) -> bool:
        """End the thread; return whether it has ended, so that the channels can be closed.

        It may be stuck, for example on a console that takes no more output; the agent goes on then.
        """
        self._is_closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            return False
        os.close(self._wake)
        return True

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # a watchdog that has ended in silence would let workers hang for ever
            self._agent.report_unhealthy(f"the watchdog has failed: {type(error).__name__}: {error}")

    def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the agent's own thread
        everything, end = select.poll(), select.poll()
        for descriptor in (self._wake, *self._readers):
            everything.register(descriptor, select.POLLIN)
        end.register(self._wake, select.POLLIN)
        are_enlarged = False
        while not self._is_closing:
            deadline = self._timekeeper.next_deadline()
            found = everything.poll(None if deadline is None else 1000.0 * seconds_until(deadline))
            ready = [descriptor for descriptor, _ in found if descriptor != self._wake]
            if len(ready) < len(found) and not self._is_closing:
                os.eventfd_read(self._wake)
            if ready and not are_enlarged:
                are_enlarged = True  # not before: most programs write nothing, and the room counts for the user
                for channel in self._channels:
                    channel.enlarge()
            self._timekeeper.take(ready, deadline)
            if found:
                end.poll(_BATCH_SECONDS * 1000.0)
