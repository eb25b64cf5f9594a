"""One step of a state machine in the making; both machines (rendezvous and agent) build theirs with it.

What does not live here: any state, and any decision.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from attrs import evolve

StateT = TypeVar("StateT")  # an attrs class
CommandT = TypeVar("CommandT")


class Transition(Generic[StateT, CommandT]):
    """The state so far, and the commands that the step has led to.  ``now`` is in monotonic seconds."""

    __slots__ = ("commands", "now", "state")

    def __init__(self, state: StateT, now: float) -> None:
        self.state, self.now = state, now
        self.commands: list[CommandT] = []

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        state: Any = self.state
        self.state = evolve(state, **changes)

    def emit(self, *commands: CommandT) -> None:
        """Have the runner carry out ``commands`` once the step is over."""
        self.commands.extend(commands)
