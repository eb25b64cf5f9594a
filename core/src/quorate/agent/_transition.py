"""One step of the agent's machine in the making, and the requests that several phases make.

What does not live here: which input leads where (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

from typing import Any, final

from attrs import evolve

from .. import _transition
from ..records import Assignment, RoundEnd
from . import _protocol as protocol
from ._protocol import Phase
from ._state import Round, State, Stopping


@final
class Transition(_transition.Transition[State, protocol.Command]):
    """One step of the agent's machine in the making."""

    @property
    def round(self) -> Round:
        """The round that this node is in; only while there is one."""
        assert self.state.round is not None
        return self.state.round

    @property
    def assignment(self) -> Assignment:
        return self.round.assignment

    @property
    def stopping(self) -> Stopping:
        """What is known in the phase STOPPING."""
        assert self.state.stopping is not None
        return self.state.stopping

    def set_round(self, **changes: Any) -> None:
        self.set(round=evolve(self.round, **changes))

    def set_stopping(self, **changes: Any) -> None:
        self.set(stopping=evolve(self.stopping, **changes))

    def enter(self, phase: Phase, reason: str, *, wake_at: float | None = None, **changes: Any) -> None:
        """Change the phase, and say why; at ``wake_at`` (monotonic seconds) the state's clock is due."""
        self.set(phase=phase, reason=reason, wake_at=wake_at, **changes)

    def finish(
        self, outcome: protocol.Outcome, reason: str, why: protocol.StopReason, end: RoundEnd | None = None
    ) -> None:
        """End the run."""
        finish = protocol.Finish(outcome, reason, why, end)
        self.enter(Phase.FINISHED, reason, joining=None, stopping=None, finish=finish)
        self.emit(finish)
