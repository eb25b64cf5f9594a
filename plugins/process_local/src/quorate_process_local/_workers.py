"""One worker as its context sees it, and the process behind it.

What does not live here: starting it (the starters) and when it is signalled (:mod:`._context`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, final

from attrs import define, field

from quorate.clock import wall_time_ns
from quorate.failures import message_from_stderr, signal_name
from quorate.notices import warn
from quorate.proc import hold, open_pidfd, release
from quorate.records import WorkerExited

from ._channel import Channel
from ._connections import Connection
from ._families import tell
from ._streams import Output, tail_lines, tail_of_file, why_lost

#: Of the end of stderr, in which an exception is looked for.
_MOST_LINES = 2000


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
            with suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
        for descriptor in (self.descriptor, self._lifeline):
            release(descriptor)
        self.descriptor = self._lifeline = -1


@final
@define(eq=False)
class Worker:
    """A started worker and what is known of its end; ``environment`` is that of its newest assignment."""

    local_rank: int
    process: Process
    output: Output
    environment: Mapping[str, str] = field(factory=dict)
    #: Its channel, if it is live.
    channel: Channel | None = None
    #: Until when it must have left its world, in monotonic seconds; ``None`` if it need not.
    leave_by: float | None = None
    #: Whether it has left its world and waits for the next one.
    has_left: bool = False
    #: Whether its context goes on without it.
    is_dropped: bool = False
    #: The signal that it was sent last, 0 if none.
    signal: int = 0
    exit_code: int | None = None
    #: Whether it waits, once it has delivered, until the context is stopped: other nodes may use what it serves.
    is_kept: bool = False
    #: Whether it was reported at its delivery, while its process runs.
    is_reported: bool = False
    timestamp_ns: int = 0
    stopped: bool = False
    problem: str = ""
    #: Its connection for the result; the worker waits as long as this is open.
    connection: Connection | None = None
    #: The value that its function has delivered, and why it cannot be used; ``None`` before.
    result: tuple[Any, str] | None = None
    #: Until when its report waits for the rest of its stderr, in monotonic seconds.
    deadline: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_spared(self) -> bool:
        """Whether it is about to leave its world, or has left it, instead of being stopped."""
        return self.has_left or self.leave_by is not None

    def tell(self, signal_number: int) -> None:
        """Ask it to stop, once; its family is asked when it has ended."""
        if self.signal:
            return
        self.signal = signal_number
        if not tell(self.pid, signal_number):
            warn(f"worker {self.pid} runs as another user and cannot be signalled")

    def kill(self) -> None:
        """Kill its process group, once."""
        if self.signal == signal.SIGKILL:
            return
        self.signal = signal.SIGKILL
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # A forked worker does not lead a group yet in its first moments.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
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
            if self.exit_code == 0 and exit_code != 0 and not stopped:
                how = f"by {signal_name(exit_code)}" if exit_code < 0 else f"with exit code {exit_code}"
                warn(f"local rank {self.local_rank} ended {how} after its function had returned; the result counts")
        self.deadline = deadline
        self.timestamp_ns = wall_time_ns()
        self.problem = self.problem or self.process.problem

    def is_reportable(self, now: float) -> bool:
        """Return whether all that its report needs is here."""
        return (
            self.is_reported
            or self.exit_code == 0
            or self.output.errors is None
            or self.output.errors.drained
            or now >= self.deadline
        )

    def report(self) -> WorkerExited:
        """Return the record of its end."""
        exit_code = 0 if self.exit_code is None else self.exit_code
        value, problem = self.result or (None, "")
        tail = b"" if exit_code == 0 else self._tail()
        if exit_code > 0 and not tail and not problem and not self.problem and self.output.error_path:
            lost = why_lost(self.output.error_path)
            problem = lost and f"exit code {exit_code}; what it wrote last is lost: {lost}"
        return WorkerExited(
            self.local_rank,
            self.pid,
            exit_code,
            self.timestamp_ns,
            return_value=value,
            stopped=self.stopped,
            stderr_tail=tail_lines(tail),
            problem=problem or self.problem,
            exception=message_from_stderr(tail_lines(tail, _MOST_LINES)) or "",
            has_both_streams=self.output.has_both,
        )

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines of its stderr so far."""
        return tail_lines(self._tail())

    def _tail(self) -> bytes:
        if self.output.errors is not None:
            return self.output.errors.tail
        return tail_of_file(self.output.error_path) if self.output.error_path else b""


def may_serve_other_nodes(environment: Mapping[str, str]) -> bool:
    """Return whether a worker is the one that serves the store at MASTER_ADDR:MASTER_PORT to workers of other nodes."""
    is_served_by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return environment.get("RANK") == "0" and environment.get("GROUP_WORLD_SIZE", "1") != "1" and not is_served_by_agent


def why_terminated(workers: Sequence[Worker], seconds: float) -> str:
    """Return the warning about function workers whose processes did not end by themselves."""
    ranks = ", ".join(str(worker.local_rank) for worker in workers)
    return (
        f"local rank {ranks} did not end within {seconds:g} s of the function's return and is terminated; the result "
        "counts (threads that are not daemons keep a process running; so may a DDP object or process group)"
    )
