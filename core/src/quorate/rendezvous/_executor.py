"""What the driver decides, without its threads: the next input, the overdue calls, and the wait that still counts.

The real driver (``_driver``) and the simulated one (``quorate.testing``) both use these classes, so that a simulation
runs no copy of them.  They have no threads, no locks and no clock of their own; threads that share a
:class:`PendingWait` hold a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, final

from ..errors import QuorateError
from ..records import NodeRecord, RoundSummary
from ._machine import step
from ._protocol import (
    Appeared,
    AskRescale,
    Call,
    Command,
    Failed,
    Input,
    Ordered,
    OrderNodes,
    Output,
    Rescaled,
    Settings,
    Tick,
    Wait,
)
from ._state import State, Step, wake_at


class Executor(Protocol):
    """Carries out the machine's commands.  No method blocks, except the two policies."""

    def call(self, call: Call) -> None:
        """Queue a store call; it is answered by a Reply or a Failed."""
        ...

    def wait_for(self, key: str | None) -> None:
        """Wait for ``key`` from now on, instead of the key before; ``None``: for nothing."""
        ...

    def emit(self, output: Output, /) -> None:
        """Hand an output to the agent."""
        ...

    def decide_ranks(self, nodes: Sequence[NodeRecord], previous: Sequence[str], /) -> Sequence[str]:
        """Ask the policy for the order of the nodes."""
        ...

    def decide_rescale(self, summary: RoundSummary, waiting: int, /) -> bool:
        """Ask the policy whether the waiting nodes are worth a new round."""
        ...


@final
class Interpreter:
    """Steps one node's rendezvous machine and has its commands carried out.

    Arguments:
        settings: bounds and timeouts.
        executor: carries out the commands.
        clock: returns this node's monotonic time, in seconds.
        operation_timeout: seconds after which a call without an answer counts as failed.
        on_step: called with the state before, the input and the step, for simulations and tests.
    """

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        clock: Callable[[], float],
        operation_timeout: float,
        on_step: Callable[[State, Input, Step], None] | None = None,
    ) -> None:
        self.state = State(settings)
        self._executor, self._clock, self._on_step = executor, clock, on_step
        self._operation_timeout = operation_timeout
        self._deadlines: deque[tuple[float, Call]] = deque()

    def feed(self, event: Input) -> None:
        """Take one input, and the policies' answers that follow from it."""
        backlog: deque[Input] = deque([event])
        while backlog:
            event = backlog.popleft()
            before = self.state
            result = step(before, event, self._clock())
            self.state = result.state
            if self._on_step is not None:
                self._on_step(before, event, result)
            for command in result.commands:
                answer = self._execute(command)
                if answer is not None:
                    backlog.append(answer)

    def due_input(self, is_opening: bool) -> Input | None:
        """Return the input that the passing of time has brought, if any.

        Asked before every other input, so that no flood of inputs can delay the machine's clock.

        Arguments:
            is_opening: the store is still being opened, so that no call can have been answered yet.
        """
        now, due_at = self._clock(), wake_at(self.state)
        if due_at is not None and due_at <= now:
            return Tick()
        if self._deadlines and self._deadlines[0][0] <= now:
            return self._overdue_call(now, is_opening)
        return None

    def next_due_at(self) -> float | None:
        """Return when :meth:`due_input` will return something, on this node's clock."""
        times = (wake_at(self.state), self._deadlines[0][0] if self._deadlines else None)
        return min((time for time in times if time is not None), default=None)

    def _overdue_call(self, now: float, is_opening: bool) -> Input:
        deadline, call = self._deadlines.popleft()
        if is_opening:
            self._deadlines.append((now + self._operation_timeout, call))
            return Tick()
        if self._is_answered(call):
            return Tick()
        return Failed(
            call, f"no answer within {self._operation_timeout:g} s", sent_at=deadline - self._operation_timeout
        )

    def _is_answered(self, call: Call) -> bool:
        return self.state.pending.get(call.purpose) is not call

    def _execute(self, command: Command) -> Input | None:
        executor = self._executor
        if isinstance(command, Call):
            self._deadlines.append((self._clock() + self._operation_timeout, command))
            while self._deadlines and self._is_answered(self._deadlines[0][1]):
                self._deadlines.popleft()
            executor.call(command)
        elif isinstance(command, Wait):
            executor.wait_for(command.key)
        elif isinstance(command, OrderNodes):
            try:
                return Ordered(tuple(executor.decide_ranks(command.nodes, command.previous)))
            except BaseException as error:
                return Ordered((), str(error) if isinstance(error, QuorateError) else f"decide_ranks raised {error!r}")
        elif isinstance(command, AskRescale):
            return Rescaled(bool(executor.decide_rescale(command.summary, command.waiting)))
        else:
            executor.emit(command)
        return None


@final
class PendingWait:
    """The key of the one blocking wait, and whether the wait's result still counts when it ends."""

    __slots__ = ("is_waiting", "key")

    def __init__(self) -> None:
        self.key: str | None = None
        self.is_waiting = False

    def set_key(self, key: str | None) -> bool:
        """Wait for ``key`` from now on; returns whether a wait that is under way has to be interrupted."""
        self.key = key
        return self.is_waiting

    def begin(self) -> str | None:
        """Return the key to wait for now, ``None`` if no wait is wanted."""
        self.is_waiting = self.key is not None
        return self.key

    def finish(self, key: str, value: bytes | None, failure: Failed | None = None) -> Input | None:
        """Return the input that the end of a wait for ``key`` leads to; ``None`` if the key was changed meanwhile."""
        self.is_waiting = False
        if self.key != key or (value is None and failure is None):
            return None
        self.key = None
        return failure if failure is not None else Appeared(key, value or b"")
