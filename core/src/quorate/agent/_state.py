"""The state of the agent machine: what never changes, what the whole run knows, and a record for each phase.

What does not live here: how it changes (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

from typing import final

from attrs import field, frozen

from ..cut_off import WhenCutOff
from ..records import Assignment, FailureRecord, RendezvousWaiting, RoundEnd
from . import _protocol as protocol
from ._protocol import Phase


@final
@frozen
class Settings:
    """What does not change during a run.  Times are in seconds."""

    max_restarts: int
    exit_barrier_timeout: float
    grace: protocol.Grace = field(factory=protocol.Grace)
    close_timeout: float = 5.0  # how long the recorded end of a round is waited for
    dump_timeout: float = 5.0  # how long workers may take to write their stacks
    loss_timeout: float = 0.0  # within which other nodes notice that a node is lost; 0: they do not
    when_cut_off: WhenCutOff = WhenCutOff.RUN
    release_timeout: float = 0.0  # how long a live worker may take to leave its world; 0: all workers are stopped
    host: str = ""


@final
@frozen
class Joining:
    """The phases CHECKING and JOINING: what is known while this node waits."""

    standby_reason: str = ""
    peer_declined: str = ""


@final
@frozen
class Round:
    """The sealed round that this node is in, from its assignment until the next round is joined."""

    assignment: Assignment
    succeeded: frozenset[int] = frozenset()  # local ranks
    failures: tuple[FailureRecord, ...] = ()
    hang: protocol.WorkerHung | None = None  # stacks are being dumped, or were

    @property
    def all_succeeded(self) -> bool:
        return len(self.succeeded) == self.assignment.local_world_size


@final
@frozen
class Stopping:
    """The phase STOPPING: ``why`` says what follows when the workers are gone.

    ``proposed`` is the end that this agent wants recorded, ``end`` what was recorded.  While ``is_held_back`` is true
    the proposal has not been sent: the other nodes may know the cause better.  ``interrupted_at`` is when a person
    pressed Ctrl-C for the first time.
    """

    why: protocol.StopReason
    proposed: RoundEnd | None = None
    is_held_back: bool = False
    end: RoundEnd | None = None
    workers_gone: bool = False
    interrupted_at: float | None = None


@final
@frozen(slots=False)  # each step of the machine copies it several times
class State:
    """Everything that the agent knows.  Times are seconds on its own monotonic clock.

    A phase keeps what only it needs in a record of its own; ``history`` has the rounds that ended, oldest first.
    ``kept`` are the local ranks of live workers that have left their world and wait for the next one.
    """

    settings: Settings
    phase: Phase = Phase.NEW
    reason: str = ""
    wake_at: float | None = None
    history: tuple[RoundEnd, ...] = ()
    kept: frozenset[int] = frozenset()
    joining: Joining | None = None
    waiting: RendezvousWaiting | None = None  # the last report, while this node waits
    round: Round | None = None
    stopping: Stopping | None = None
    finish: protocol.Finish | None = None

    @property
    def max_restarts(self) -> int:
        return self.settings.max_restarts

    @property
    def assignment(self) -> Assignment | None:
        return None if self.round is None else self.round.assignment

    @property
    def failures(self) -> tuple[FailureRecord, ...]:
        """The failures of this node's workers in the newest round."""
        return () if self.round is None else self.round.failures

    @property
    def end(self) -> RoundEnd | None:
        """The recorded end of the newest round, or of the job, as far as it is known."""
        last = self.finish or self.stopping
        return None if last is None else last.end

    @property
    def ends(self) -> tuple[RoundEnd, ...]:
        """The rounds that ended, the newest one included."""
        end = self.end
        return self.history if end is None or end in self.history else (*self.history, end)

    @property
    def trouble(self) -> protocol.RendezvousFailed | None:
        """Why the rendezvous cannot go on, if it cannot."""
        why = self._why
        return why.failure if isinstance(why, protocol.RendezvousIsLost) else None

    @property
    def signal_number(self) -> int | None:
        """The signal that makes this agent leave."""
        why = self._why
        return why.number if isinstance(why, protocol.AgentSignalled) else None

    @property
    def _why(self) -> protocol.StopReason | None:
        """Why workers are stopped, or the run has ended."""
        last = self.finish or self.stopping
        why = None if last is None else last.why
        return why.finish.why if isinstance(why, protocol.NoNextRound) else why


@final
@frozen
class AgentStep:
    """What one step of the machine results in."""

    state: State
    commands: tuple[protocol.Command, ...]
    reason: str
