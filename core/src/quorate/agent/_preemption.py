"""The scheduler's warnings: which signals they are, how much time is left, and the file that tells the workers.

What does not live here: what follows from a warning (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import final

from ..clock import monotonic, sleep
from ..clusters import ClusterJob, grace_before
from ..failures import signal_name
from ..files import temporary_folder
from ..preemption import remove_deadline, reserve_deadline, write_deadline
from . import _protocol as protocol

#: A program that does not end by itself after a warning must not hold its nodes for hours.
_LONGEST_GRACE_SECONDS = 3600.0
_LONGEST_PAUSE_SECONDS = 10.0


@final
class Preemption:
    """The warnings of one run; ``job`` is ``None`` where no scheduler has started this agent."""

    def __init__(self, job: ClusterJob | None, post: Callable[[protocol.Input], None]) -> None:
        self._job, self._post = job, post
        self._is_announced = False
        self._reserved: int | None = None
        self._ends_at: float | None = None
        # Named by chance, because others may write where temporary files are.
        self.path = os.path.join(_folder(), f"quorate-deadline-{os.urandom(8).hex()}.json")
        names = () if job is None else job.warnings
        self.signals = tuple(int(signal.Signals[name]) for name in names if name in signal.Signals.__members__)

    def begin(self) -> None:
        """Ask the scheduler when the job's time is over, on a thread: a warning must be followed at once.

        The nodes of a large job do not ask in the same moment.
        """
        job = self._job
        if job is None or job.seconds_left is None:
            return
        pause = min(_LONGEST_PAUSE_SECONDS, (job.max_nodes or 1) / 100) * int.from_bytes(os.urandom(2), "big") / 65536
        threading.Thread(target=self._ask, args=(job, pause), name="quorate-time-left", daemon=True).start()

    def _ask(self, job: ClusterJob, pause_seconds: float) -> None:
        if pause_seconds > 1.0:
            sleep(pause_seconds)
        left = job.time_left()
        self._ends_at = None if left is None else monotonic() + left

    def takes(self, number: int) -> bool:
        """Return whether a signal is a warning; if so, an input follows."""
        job = self._job
        if job is None or number not in self.signals:
            return False
        left = job.kill_seconds
        if number != signal.SIGTERM:
            left = None if self._ends_at is None else self._ends_at - monotonic()
            if left is not None and left <= 0:
                left = None  # the scheduler has given the job more time
        self._post(self._warning(job, number, left))
        return True

    def _warning(self, job: ClusterJob, number: int, left: float | None) -> protocol.PreemptionWarned:
        grace = None if left is None else min(grace_before(left), _LONGEST_GRACE_SECONDS)
        known = "" if left is None else f" and will be killed in {left:.0f} s"
        where = f" (node {job.node_name})" if job.node_name and not job.warns_whole_job else ""
        reason = f"{job.title} was told to stop by {signal_name(-number)}{known}{where}"
        return protocol.PreemptionWarned(number, grace, reason, job.warns_whole_job, job.min_nodes or 0)

    def announce(self, command: protocol.AnnounceDeadline, warn: Callable[[str], None]) -> None:
        """Write the workers' deadline file."""
        reserved, self._reserved = self._reserved, None
        try:
            write_deadline(self.path, command.seconds, command.reason, command.signal_number, reserved)
            self._is_announced = True
        except OSError as error:
            warn(f"the workers' deadline could not be written to {self.path}: {error.strerror}")
        finally:
            if reserved is not None:
                os.close(reserved)

    def prepare(self) -> None:
        """Remove the file, since the workers of the next round have no deadline, and take the space for another."""
        self._take_back()
        if self._reserved is None:
            self._reserved = reserve_deadline(self.path)

    def close(self) -> None:
        """Remove the file and give the space back."""
        self._take_back()
        if self._reserved is not None:
            os.close(self._reserved)
            self._reserved = None

    def _take_back(self) -> None:
        if self._is_announced:
            self._is_announced = False
            remove_deadline(self.path)


def _folder() -> str:
    try:
        return temporary_folder(os.environ)[0]
    except OSError:
        return "/tmp"  # the announcement says why it cannot be written there
