"""A worker that is forked ahead and waits, so that one which died can be replaced without a fork.

A fork of a process that has torch takes some ten milliseconds, and a warm worker is made by two of them and the end of
a process between.  Where workers live on, all of them wait for that.  What does not live here: when there is a spare
(:mod:`._warm`).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, final

from quorate.errors import StartError
from quorate.proc import forget, hold, kill_and_reap

from ._template import Forking, Template
from ._template_site.quorate_template import send

#: A spare only waits for its order, so it takes it at once.
_ORDER_TIMEOUT_SECONDS = 10.0


@final
class Spare:
    """A child of the agent that becomes a worker when it is told which one, or ends with its channel."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid, self._channel = pid, channel
        hold(channel.fileno(), channel.close)

    def is_waiting(self) -> bool:
        """Return whether it can be used: it has not ended."""
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        return not poller.poll(0)  # it never says anything

    def become(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """Make it the worker of ``order``; return its pid.  One that has just ended is a worker that has."""
        with suppress(OSError):
            send(self._channel, dict(order), descriptors)
        self._close()
        return self.pid

    def end(self) -> None:
        """End and reap it."""
        self._close()
        kill_and_reap(self.pid)

    def _close(self) -> None:
        forget(self._channel.fileno())
        self._channel.close()


def make_spare(template: Template) -> Spare | None:
    """Have a spare forked by a template that is ready; ``None`` where none can be: workers are forked when needed."""
    try:
        ours, its = socket.socketpair()
    except OSError:
        return None
    ours.settimeout(_ORDER_TIMEOUT_SECONDS)
    try:
        with its, template.fork_workers() as forking:
            pid = forking.fork({"spare": True}, [its.fileno()], 0)
    except StartError:
        ours.close()
        return None
    return Spare(pid, ours)


@final
class WorkerSource:
    """Where the workers of one start come from: the spare if there is one, then forks.  Use as a context manager."""

    def __init__(self, template: Template, spare: Spare | None) -> None:
        self._template, self._spare = template, spare
        self._forking: Forking | None = None

    def __enter__(self) -> WorkerSource:
        return self

    def fork(self, order: Mapping[str, Any], descriptors: Sequence[int], local_rank: int) -> int:
        """Return the pid of a worker; see :meth:`Forking.fork`."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.is_waiting():
            return spare.become(order, descriptors)
        if spare is not None:
            spare.end()
        if self._forking is None:
            self._forking = self._template.fork_workers().__enter__()
        return self._forking.fork(order, descriptors, local_rank)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spare is not None:
            self._spare.end()
        if self._forking is not None:
            self._forking.__exit__(kind, error, trace)
