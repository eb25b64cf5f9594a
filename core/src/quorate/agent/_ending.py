"""How the running of workers ends: they are stopped, or live ones are released; and how the whole run ends.

What does not live here: when that is done (``_running``, ``_joining``), and what follows (``_stopping``).
"""

from __future__ import annotations

import signal
from typing import Any

from ..records import RoundEnd
from . import _protocol as protocol
from ._protocol import Phase
from ._state import Stopping
from ._transition import Transition


def stop(
    transition: Transition,
    why: protocol.StopReason,
    reason: str,
    grace_seconds: float,
    with_signal: int = signal.SIGTERM,
    **known: Any,
) -> None:
    """Stop the workers; ``known`` are further fields of :class:`~quorate.agent._state.Stopping`.

    Frozen ones are killed: while they had a grace, they would run beside those of the next round.
    """
    if transition.state.phase is Phase.FROZEN:
        with_signal, grace_seconds = signal.SIGKILL, 0.0
        reason = f"{reason}; the frozen workers are killed, since another round may run already"
    transition.enter(Phase.STOPPING, reason, kept=frozenset(), joining=None, stopping=Stopping(why, **known))
    transition.emit(protocol.StopWorkers(int(with_signal), grace_seconds))


def release(transition: Transition, reason: str, grace_seconds: float, **known: Any) -> None:
    """End the round for the workers: live ones leave their world, the others are stopped; arguments as for `stop`."""
    timeout, hang = transition.state.settings.release_timeout, transition.round.hang
    if timeout <= 0 or transition.state.phase is Phase.FROZEN:
        stop(transition, protocol.RoundIsOver(), reason, grace_seconds, **known)
        return
    transition.enter(Phase.STOPPING, reason, stopping=Stopping(protocol.RoundIsOver(), **known))
    given_up = None if hang is None else hang.local_rank
    transition.emit(protocol.ReleaseWorkers(int(signal.SIGTERM), grace_seconds, timeout, given_up))


def end_run(
    transition: Transition,
    outcome: protocol.Outcome,
    reason: str,
    why: protocol.StopReason,
    end: RoundEnd | None = None,
) -> None:
    """End the run; live workers that wait for a round are stopped first."""
    if not transition.state.kept:
        transition.finish(outcome, reason, why, end)
        return
    decided = protocol.NoNextRound(protocol.Finish(outcome, reason, why, end))
    grace = transition.state.settings.grace
    if isinstance(why, protocol.AgentSignalled):
        stop(transition, decided, reason, grace.preemption, why.number, end=end)
    else:
        stop(transition, decided, reason, grace.exit, end=end)
