"""Whether a member can still prove that the other nodes count on it: the time until which its workers may run.  Pure.

The others call a node lost ``silence_limit`` seconds after they can know that it sent its last heartbeat.  This node
knows less: a heartbeat without an answer may have arrived or not.  So it counts from when it *sent* the last heartbeat
that the store has acknowledged, and its time is over one heartbeat before the lease is.

After a gap, an acknowledged heartbeat proves nothing yet: another node may be recording the loss right now.  The end
of the round is then read; only if it is not there does the round go on.  Whoever gathers the next round reads the
heartbeats of the lost once more, and waits for one that has sent another since (``RoundEnd.lost_counts``).

Nothing of this happens where workers go on anyway (``when_cut_off=run``).
"""

from __future__ import annotations

from attrs import evolve

from ._liveness import Heartbeat
from ._protocol import CutOff, Key, Purpose, Reconnected
from ._state import Standing, State, cut_off_at
from ._transition import Transition


def check_standing(transition: Transition) -> None:
    """Report, once, that the others may go on without this node from now on."""
    state = transition.state
    due_at = cut_off_at(state)
    if due_at is None or transition.now < due_at:
        return
    transition.set(standing=evolve(state.standing, is_cut_off=True))
    seconds = transition.now - state.standing.proven_at
    problem = f" ({state.trouble.problem})" if state.trouble.since is not None else ""
    transition.emit(
        CutOff(
            f"the rendezvous store has acknowledged no heartbeat of this node for {seconds:.1f} s{problem}, so that "
            "the other nodes may go on without it"
        )
    )


def on_acknowledged_early(transition: Transition, value: None) -> None:
    """Before the round begins: once it is sealed, the others count this node's lease from such a heartbeat."""
    state, sent_at = transition.state, _sent_at(transition.state, Purpose.HEARTBEAT)
    if sent_at is not None and state.settings.tracks_cut_off:
        transition.set(standing=Standing(max(state.standing.proven_at, sent_at)))


def on_acknowledged(transition: Transition, value: None) -> None:
    """While the round runs: a heartbeat has arrived.  After a gap, ask whether the round has ended meanwhile."""
    state = transition.state
    sent_at = _sent_at(state, Purpose.HEARTBEAT)
    if sent_at is None or not state.settings.tracks_cut_off:
        return
    standing = state.standing
    lease = state.settings.timeouts.lease_timeout
    if not standing.is_cut_off and transition.now - standing.proven_at <= lease / 2:
        transition.set(standing=evolve(standing, proven_at=max(standing.proven_at, sent_at)))
    elif Purpose.STANDING not in state.pending:
        transition.set(standing=evolve(standing, claimed_at=sent_at))
        transition.get(Purpose.STANDING, [Key.ended(state.round_number)])


def on_standing(transition: Transition, values: list[bytes | None]) -> None:
    """After the heartbeat had arrived, the round had not ended: from then on it waits for this node."""
    state, standing = transition.state, transition.state.standing
    if values[0] is not None:
        return  # the wait for the end brings it
    proven_at = max(standing.proven_at, standing.claimed_at)
    is_back = standing.is_cut_off and transition.now < proven_at + state.settings.timeouts.cut_off_timeout
    transition.set(standing=evolve(standing, proven_at=proven_at, is_cut_off=standing.is_cut_off and not is_back))
    if is_back:
        transition.emit(Reconnected())


def on_acknowledged_late(transition: Transition, value: None) -> None:
    """Once the round has ended, the next one waits for this node as long as its heartbeats arrive in time."""
    state, standing = transition.state, transition.state.standing
    sent_at = _sent_at(state, Purpose.HEARTBEAT)
    if sent_at is not None and not standing.is_cut_off:
        transition.set(standing=evolve(standing, proven_at=max(standing.proven_at, sent_at)))


def _sent_at(state: State, purpose: Purpose) -> float | None:
    call = state.pending.get(purpose)
    sent_ms = None if call is None else Heartbeat.decode(call.values[0]).sent_ms
    return None if sent_ms is None else sent_ms / 1000
