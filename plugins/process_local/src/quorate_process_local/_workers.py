"""One worker as its context sees it, and the process behind it.

What does not live here: starting it (the starters) and when it is signalled (:mod:`._context`).
"""

from __future__ import annotations

import os
from typing import Any, Protocol, final

from quorate.clock import wall_time_ns
from quorate.notices import warn
from quorate.proc import hold, open_pidfd, release
from quorate.records import WorkerExited

from ._connections import Connection
from ._streams import Stream, tail_lines, tail_of_file

__all__ = ["ChildProcess", "Process", "Worker"]


class Process(Protocol):
    """A started process: how its end is seen and what it leaves."""

    pid: int
    #: Readable once it has ended; -1 where nothing can be waited for.
    descriptor: int
    #: Whether its pid cannot be given to another process before :meth:`release`.
    is_held: bool
    #: A sentence if its exit code is not the whole truth.
    problem: str

    def poll(self) -> int | None:
        """Return its exit code (negative: signal), ``None`` while it runs."""
        ...

    def release(self) -> None:
        """Reap it and close its descriptors."""
        ...


@final
class ChildProcess:
    """A child of this process.

    It stays a zombie until :meth:`release`, which is called after the sweep.  So its process id, which is also the id
    of its session and group, cannot pass to another process while signals may still be sent there.
    """

    def __init__(self, pid: int, lifeline: int = -1) -> None:
        """``lifeline`` is a held descriptor that :meth:`release` closes."""
        self.pid = pid
        self.is_held = True
        self.problem = ""
        self._lifeline = lifeline
        try:
            self.descriptor = hold(open_pidfd(pid))
        except ProcessLookupError:  # other code of the agent's process has already reaped it
            self.descriptor = -1

    def poll(self) -> int | None:
        """See :class:`Process`."""
        try:
            status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self.is_held = False
            self.problem = "its exit status was taken by other code in the agent's process (or SIGCHLD is ignored)"
            return 255
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def release(self) -> None:
        """See :class:`Process`."""
        if self.is_held:
            self.is_held = False
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pass
        for descriptor in (self.descriptor, self._lifeline):
            release(descriptor)
        self.descriptor = self._lifeline = -1


@final
class Worker:
    """A started worker and what is known of its end."""

    __slots__ = (
        "connection", "deadline", "error_path", "errors", "exit_code", "is_kept", "is_reported", "local_rank",
        "problem", "process", "result", "stopped", "timestamp_ns",
    )  # fmt: skip

    def __init__(self, local_rank: int, process: Process, errors: Stream | None, error_path: str) -> None:
        self.local_rank, self.process, self.errors, self.error_path = local_rank, process, errors, error_path
        self.exit_code: int | None = None
        #: Whether it waits, once it has delivered, until the context is stopped: other nodes may use what it serves.
        self.is_kept = False
        #: Whether it was reported at its delivery, while its process runs.
        self.is_reported = False
        self.timestamp_ns = 0
        self.stopped = False
        self.problem = ""
        #: Its connection for the result; the worker waits as long as this is open.
        self.connection: Connection | None = None
        #: The value that its function has delivered, and why it cannot be used; ``None`` before.
        self.result: tuple[Any, str] | None = None
        #: Until when its report waits for the rest of its stderr, in monotonic seconds.
        self.deadline = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, signal_number: int) -> None:
        """Send a signal to its process group."""
        try:
            os.killpg(self.pid, signal_number)
        except ProcessLookupError:
            # A forked worker does not lead a group yet in its first moments.
            try:
                os.kill(self.pid, signal_number)
            except ProcessLookupError:
                pass
        except PermissionError:
            warn(f"worker {self.pid} runs as another user and cannot be signalled")

    def note_result(self, value: Any, problem: str, stopped: bool) -> None:
        """Remember what its function returned: that decides, however its process ends."""
        self.result, self.stopped = (value, problem), stopped

    def note_success(self) -> None:
        """Have a kept worker reported at its delivery."""
        self.is_reported, self.timestamp_ns = True, wall_time_ns()

    def note_exit(self, exit_code: int, stopped: bool, deadline: float) -> None:
        """Remember how its process ended."""
        if self.result is None:
            self.exit_code, self.stopped = exit_code, stopped
        else:
            self.exit_code = 1 if self.result[1] else 0
        self.deadline = deadline
        self.timestamp_ns = wall_time_ns()
        self.problem = self.problem or self.process.problem

    def is_reportable(self, now: float) -> bool:
        """Return whether all that its report needs is here."""
        return (
            self.is_reported
            or self.exit_code == 0
            or self.errors is None
            or self.errors.drained
            or now >= self.deadline
        )

    def report(self) -> WorkerExited:
        """Return the record of its end."""
        exit_code = 0 if self.exit_code is None else self.exit_code
        value, problem = self.result or (None, "")
        lines = () if exit_code == 0 else self.last_lines()
        return WorkerExited(
            self.local_rank,
            self.pid,
            exit_code,
            self.timestamp_ns,
            return_value=value,
            stopped=self.stopped,
            stderr_tail=lines,
            problem=problem or self.problem,
        )

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines of its stderr so far."""
        if self.errors is not None:
            return tail_lines(self.errors.tail)
        return tail_lines(tail_of_file(self.error_path)) if self.error_path else ()
