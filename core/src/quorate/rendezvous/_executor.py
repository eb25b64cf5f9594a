"""What the driver decides, without its threads: which input is next, which call is overdue, which wait counts.

The real driver (``_driver``) and the simulated one (``quorate.testing``) both run this, so that nothing that could be
wrong in between the machine and the store exists twice.  No threads, no locks and no clock of its own; whoever shares
a :class:`PendingWait` between threads holds a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, final

from ..errors import QuorateError
from ..records import NodeRecord, RoundSummary
from ._machine import initial_state, step
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
    State,
    Step,
    Tick,
    Wait,
    wake_at,
)

__all__ = ["Executor", "Interpreter", "PendingWait"]


class Executor(Protocol):
    """What the machine's commands need done.  No method blocks, but the two policies."""

    def call(self, call: Call) -> None:
        """Queue a store call; it is answered by a Reply or a Failed."""
        ...

    def aim(self, key: str | None) -> None:
        """Wait for ``key`` from now on, instead of whatever was waited for."""
        ...

    def tell(self, output: Output, /) -> None:
        """Tell the agent."""
        ...

    def decide_ranks(self, nodes: Sequence[NodeRecord], previous: Sequence[str], /) -> Sequence[str]:
        """Ask the policy for the order of the nodes."""
        ...

    def decide_rescale(self, summary: RoundSummary, waiting: int, /) -> bool:
        """Ask the policy whether the waiting nodes are worth a new round."""
        ...


@final
class Interpreter:
    """One node's rendezvous machine between its inputs and its hands.

    Arguments:
        settings: bounds and deadlines.
        hands: carries the commands out.
        clock: returns this node's monotonic time, in seconds.
        operation_timeout: seconds after which a call without an answer counts as failed.
        watch: called with each step, what led to it and the state before; for simulations and tests.
    """

    def __init__(
        self,
        settings: Settings,
        hands: Executor,
        clock: Callable[[], float],
        operation_timeout: float,
        watch: Callable[[State, Input, Step], None] | None = None,
    ) -> None:
        self.state: State = initial_state(settings)
        self._hands, self._clock, self._operation_timeout, self._watch = hands, clock, operation_timeout, watch
        self._overdue: deque[tuple[float, Call]] = deque()

    def feed(self, event: Input) -> None:
        """Take one input, and the answers of the policies that it leads to."""
        backlog: deque[Input] = deque([event])
        while backlog:
            event = backlog.popleft()
            before = self.state
            result = step(before, event, self._clock())
            self.state = result.state
            if self._watch is not None:
                self._watch(before, event, result)
            for command in result.commands:
                answer = self._execute(command)
                if answer is not None:
                    backlog.append(answer)

    def timely(self, is_opening: bool) -> Input | None:
        """Return what time alone has brought; to be asked before any other input is taken, so that no flood delays it.

        Arguments:
            is_opening: the store is still being opened, so that no call can have been answered yet.
        """
        now, due = self._clock(), wake_at(self.state)
        if due is not None and due <= now:
            return Tick()
        if self._overdue and self._overdue[0][0] <= now:
            return self._call_is_overdue(now, is_opening)
        return None

    def next_due(self) -> float | None:
        """Return when :meth:`timely` will have something next, on this node's clock."""
        due = wake_at(self.state)
        if not self._overdue:
            return due
        return self._overdue[0][0] if due is None else min(due, self._overdue[0][0])

    def _call_is_overdue(self, now: float, is_opening: bool) -> Input:
        _, call = self._overdue.popleft()
        if is_opening:
            self._overdue.append((now + self._operation_timeout, call))
            return Tick()
        if self._is_answered(call):
            return Tick()
        return Failed(call, f"no answer within {self._operation_timeout:g} s")

    def _is_answered(self, call: Call) -> bool:
        return self.state.pending.get(call.tag) is not call

    def _execute(self, command: Command) -> Input | None:
        hands = self._hands
        if isinstance(command, Call):
            self._overdue.append((self._clock() + self._operation_timeout, command))
            while self._overdue and self._is_answered(self._overdue[0][1]):
                self._overdue.popleft()
            hands.call(command)
        elif isinstance(command, Wait):
            hands.aim(command.key)
        elif isinstance(command, OrderNodes):
            try:
                return Ordered(tuple(hands.decide_ranks(command.nodes, command.previous)))
            except Exception as error:
                return Ordered((), str(error) if isinstance(error, QuorateError) else f"decide_ranks raised {error!r}")
        elif isinstance(command, AskRescale):
            return Rescaled(bool(hands.decide_rescale(command.summary, command.waiting)))
        else:
            hands.tell(command)
        return None


@final
class PendingWait:
    """What the one blocking wait is for, and whether what came of it still counts."""

    __slots__ = ("is_waiting", "key")

    def __init__(self) -> None:
        self.key: str | None = None
        self.is_waiting = False

    def aim(self, key: str | None) -> bool:
        """Wait for ``key`` from now on; returns whether a wait that is under way has to be interrupted."""
        self.key = key
        return self.is_waiting

    def begin(self) -> str | None:
        """Return the key to wait for now; ``None`` if there is none."""
        self.is_waiting = self.key is not None
        return self.key

    def finish(self, key: str, value: bytes | None, trouble: Failed | None = None) -> Input | None:
        """Return the input that the end of a wait for ``key`` leads to, if any: it may have been given up meanwhile."""
        self.is_waiting = False
        if self.key != key or (value is None and trouble is None):
            return None
        self.key = None
        return trouble if trouble is not None else Appeared(key, value or b"")
