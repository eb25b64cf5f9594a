"""The agent of one node, as a pure state machine: ``step(state, input, now)``.

Theory of operation.  The agent checks its node, joins a round, starts its workers, and waits for the first of these:
its workers end, the round's end is recorded, a worker hangs, the rendezvous or the node fails, or a signal arrives.  In
each case the workers and all that they started are gone before anything else happens.  Only then does the agent join
the next round or finish.  A worker's failure is decided upon here (through the ``decide_restart`` hook) but *recorded*
in the round's end, where the first writer wins: the agent follows what was recorded, not what it proposed.

Where another round follows, *live* workers are released instead of being stopped: they leave their world, acknowledge
that, and wait.  From then on they count as gone.  With the next assignment they are told their new ranks, and only the
others are started.  Where no round follows after all, they are stopped before the run ends.

A worker whose connection to another worker broke is treated as a victim.  Its agent stops its workers at once, but lets
the other nodes record the round's end first: an agent whose own worker failed does so within a round trip, and a node
that died is noticed within its lease.  The agent records what it has seen itself only after that time.

No I/O, no clock, no threads, no hooks here.  ``TABLE`` is the whole machine; its handlers are in ``_joining``,
``_running`` and ``_stopping``, by phase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from attrs import frozen

from . import _cut_off, _joining, _protocol as protocol, _running, _stopping
from ._protocol import Phase
from ._state import AgentStep, State
from ._transition import Transition


def step(state: State, event: protocol.Input, now: float) -> AgentStep:
    """Take one input at ``now`` (monotonic seconds) and return the new state, the commands and the reason."""
    transition = Transition(state, now)
    entry = TABLE[state.phase].get(type(event))
    if entry is not None:
        entry.handler(transition, event)
    return AgentStep(transition.state, tuple(transition.commands), transition.state.reason)


@final
@frozen
class Entry:
    """What an input does in a phase: ``handler`` stays in it or leaves for one of ``targets``."""

    handler: Callable[[Transition, Any], None]
    targets: frozenset[Phase]


def _on(handler: Callable[[Transition, Any], None], *targets: Phase) -> Entry:
    return Entry(handler, frozenset(targets))


_CHECKING, _JOINING, _RUNNING = Phase.CHECKING, Phase.JOINING, Phase.RUNNING
_FROZEN, _BARRIER, _STOPPING, _FINISHED = Phase.FROZEN, Phase.BARRIER, Phase.STOPPING, Phase.FINISHED

#: phase -> input -> handler and the phases that it may leave for; an input that is not listed changes nothing
TABLE: Mapping[Phase, Mapping[type, Entry]] = {
    Phase.NEW: {
        protocol.Begin: _on(_joining.begin, _CHECKING),
    },
    Phase.CHECKING: {
        protocol.NodeChecked: _on(_joining.checked, _JOINING, _STOPPING, _FINISHED),
        protocol.NodeUnhealthy: _on(_joining.unhealthy, _STOPPING, _FINISHED),
        protocol.JobClosed: _on(_joining.closed, _STOPPING, _FINISHED),
        protocol.RendezvousFailed: _on(_joining.rendezvous_failed, _STOPPING, _FINISHED),
        protocol.SignalReceived: _on(_joining.signalled, _STOPPING, _FINISHED),
        protocol.WorkersExited: _on(_joining.exited),
        protocol.PreemptionWarned: _on(_joining.warned, _STOPPING, _FINISHED),
    },
    Phase.JOINING: {
        protocol.RoundJoined: _on(_joining.joined, _RUNNING),
        protocol.StandingBy: _on(_joining.standing_by),
        protocol.PeerDeclined: _on(_joining.peer_declined),
        protocol.Waiting: _on(_joining.waiting),
        protocol.NodeUnhealthy: _on(_joining.unhealthy, _STOPPING, _FINISHED),
        protocol.JobClosed: _on(_joining.closed, _STOPPING, _FINISHED),
        protocol.RendezvousFailed: _on(_joining.rendezvous_failed, _STOPPING, _FINISHED),
        protocol.SignalReceived: _on(_joining.signalled, _STOPPING, _FINISHED),
        protocol.WorkersExited: _on(_joining.exited),
        protocol.PreemptionWarned: _on(_joining.warned, _STOPPING, _FINISHED),
    },
    Phase.RUNNING: {
        protocol.WorkersExited: _on(_running.exited, _BARRIER, _STOPPING),
        protocol.StartFailed: _on(_running.start_failed),
        protocol.Waiting: _on(_running.waiting),
        protocol.WorkerHung: _on(_running.hung),
        protocol.StacksDumped: _on(_running.stacks_dumped),
        protocol.Clock: _on(_running.dump_timed_out),
        protocol.Diagnosed: _on(_running.diagnosed, _STOPPING),
        protocol.RoundEnded: _on(_running.round_ended, _STOPPING),
        protocol.JobClosed: _on(_running.round_ended, _STOPPING),
        protocol.RendezvousFailed: _on(_running.rendezvous_failed, _STOPPING),
        protocol.NodeUnhealthy: _on(_running.unhealthy, _STOPPING),
        protocol.SignalReceived: _on(_running.signalled, _STOPPING),
        protocol.PreemptionWarned: _on(_running.warned, _STOPPING),
        protocol.CutOff: _on(_cut_off.cut_off, _FROZEN, _STOPPING),
    },
    Phase.FROZEN: {
        protocol.Reconnected: _on(_cut_off.reconnected, _RUNNING),
        protocol.RoundEnded: _on(_cut_off.round_ended, _STOPPING),
        protocol.JobClosed: _on(_cut_off.round_ended, _STOPPING),
        protocol.CannotFreeze: _on(_cut_off.cannot_freeze, _STOPPING),
        protocol.PreemptionWarned: _on(_cut_off.warned, _STOPPING),
        protocol.WorkersExited: _on(_running.exited, _BARRIER, _STOPPING),
        protocol.StartFailed: _on(_running.start_failed),
        protocol.Waiting: _on(_running.waiting),
        protocol.StacksDumped: _on(_running.stacks_dumped),
        protocol.Clock: _on(_running.dump_timed_out),
        protocol.Diagnosed: _on(_running.diagnosed, _STOPPING),
        protocol.RendezvousFailed: _on(_running.rendezvous_failed, _STOPPING),
        protocol.NodeUnhealthy: _on(_running.unhealthy, _STOPPING),
        protocol.SignalReceived: _on(_running.signalled, _STOPPING),
    },
    Phase.BARRIER: {
        protocol.Waiting: _on(_running.waiting),
        protocol.Clock: _on(_running.barrier_timed_out, _STOPPING),
        protocol.RoundEnded: _on(_running.round_ended, _STOPPING),
        protocol.JobClosed: _on(_running.round_ended, _STOPPING),
        protocol.RendezvousFailed: _on(_running.rendezvous_failed_in_barrier, _STOPPING),
        protocol.SignalReceived: _on(_running.signalled, _STOPPING),
        protocol.PreemptionWarned: _on(_running.warned, _STOPPING),
    },
    Phase.STOPPING: {
        protocol.WorkersExited: _on(_stopping.exited),
        protocol.Diagnosed: _on(_stopping.diagnosed),
        protocol.NodeUnhealthy: _on(_stopping.unhealthy),
        protocol.RoundEnded: _on(_stopping.end_recorded, _CHECKING, _FINISHED),
        protocol.JobClosed: _on(_stopping.end_recorded, _FINISHED),
        protocol.RendezvousFailed: _on(_stopping.rendezvous_failed, _FINISHED),
        protocol.WorkersGone: _on(_stopping.gone, _CHECKING, _FINISHED),
        protocol.Clock: _on(_stopping.timed_out, _CHECKING, _FINISHED),
        protocol.SignalReceived: _on(_stopping.signalled, _FINISHED),
        protocol.PreemptionWarned: _on(_stopping.warned),
        protocol.CutOff: _on(_cut_off.cut_off_while_stopping),
    },
    Phase.FINISHED: {},
}
