"""The vocabulary of the agent machine: phases, state, inputs and commands.

What happens with them is in :mod:`quorate.agent._machine`; who carries the commands out, in ``_runner``.
"""

from __future__ import annotations

from enum import Enum
from typing import final

from attrs import field, frozen

from ..errors import FailureKind
from ..records import (
    Assignment,
    FailureRecord,
    RestartBudget,
    RestartDecision,
    RoundEnd,
    WorkerExited,
)


@final
class Phase(str, Enum):
    """Where the agent is."""

    NEW = "new"
    CHECKING = "checking"  # no workers; finding out whether this node is fit for a round
    JOINING = "joining"  # no workers; waiting for a sealed round
    RUNNING = "running"  # workers run
    BARRIER = "barrier"  # own workers have succeeded; waiting for the other nodes
    STOPPING = "stopping"  # workers are being stopped; nothing new until all of them are gone
    FINISHED = "finished"


@final
class Outcome(str, Enum):
    """How the agent's run ends."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # workers failed, here or elsewhere
    CLOSED = "closed"  # the job had ended before this node got in
    SIGNAL = "signal"
    ERROR = "error"  # the rendezvous could not go on
    UNHEALTHY = "unhealthy"  # this node is not fit for the job, or was excluded from it


@final
@frozen
class Grace:
    """Seconds that workers get between the request to stop and SIGKILL, by cause."""

    restart: float = 30.0  # another worker failed, the round starts again
    rescale: float = 30.0  # nodes came or went
    preemption: float = 30.0  # this agent was signalled
    exit: float = 30.0  # the job is over


@final
@frozen(slots=False)  # each step of the machine copies it several times
class State:
    """Everything that the agent knows.  Times are seconds on its own monotonic clock."""

    max_restarts: int
    exit_barrier_timeout: float
    grace: Grace = field(factory=Grace)
    close_timeout: float = 5.0
    dump_timeout: float = 5.0
    loss_timeout: float = 0.0  # within which others say that a node is lost; 0: nobody does
    host: str = ""
    phase: Phase = Phase.NEW
    assignment: Assignment | None = None
    succeeded: frozenset[int] = frozenset()
    failures: tuple[FailureRecord, ...] = ()
    deferred: RoundEnd | None = None  # what this agent will want recorded unless somebody knows better
    proposed: RoundEnd | None = None  # what this agent wanted recorded
    end: RoundEnd | None = None  # what was recorded
    last_end: RoundEnd | None = None  # the same of the round before, to be told even if it was followed at once
    trouble: RendezvousFailed | None = None
    signal_number: int | None = None
    hang: WorkerHung | None = None  # stacks are being dumped for it
    unhealthy: str = ""  # why this node leaves the job when its workers are gone
    history: tuple[RoundEnd, ...] = ()  # the rounds that ended, oldest first
    gone: bool = False  # all workers, and whatever they started, have ended
    left: bool = False  # out of the exit barrier without the others
    stood_by: bool = False
    peer_declined: str = ""  # what another node has said of why it does not join
    was_member: bool = False
    wake_at: float | None = None
    reason: str = ""


# --- inputs ---------------------------------------------------------------------------------------------------------


@final
@frozen
class Begin:
    """Run."""


@final
@frozen
class NodeChecked:
    """The checks of this node are over; ``problems`` are sentences, none if it is well."""

    problems: tuple[str, ...] = ()


@final
@frozen
class NodeUnhealthy:
    """A check has found this node declined while its workers run."""

    problem: str


@final
@frozen
class RoundJoined:
    """A round is sealed with this node in it."""

    assignment: Assignment


@final
@frozen
class PeerDeclined:
    """Another node has told why it does not join the round that this one gathers nodes for."""

    reason: str


@final
@frozen
class StandingBy:
    """This node is in line for the next round."""

    reason: str


@final
@frozen
class RoundEnded:
    """The round's end was recorded, and another round follows."""

    end: RoundEnd


@final
@frozen
class JobClosed:
    """The job's end was recorded."""

    end: RoundEnd


@final
@frozen
class RendezvousFailed:
    """The rendezvous cannot go on."""

    kind: FailureKind
    problem: str


@final
@frozen
class WorkerHung:
    """A worker makes no progress."""

    local_rank: int
    pid: int
    problem: str
    timestamp_ns: int = 0


@final
@frozen
class StacksDumped:
    """The workers have written their stacks, as far as they could; ``lines`` are the hung one's last."""

    lines: tuple[str, ...] = ()


@final
@frozen
class WorkersExited:
    """Workers have ended."""

    exits: tuple[WorkerExited, ...]


@final
@frozen
class StartFailed:
    """The workers could not be started; none of them runs."""

    exit: WorkerExited


@final
@frozen
class Diagnosed:
    """The answer to :class:`Diagnose` and :class:`Decide`."""

    failure: FailureRecord
    decision: RestartDecision | None


@final
@frozen
class WorkersGone:
    """All workers and everything they started have ended."""


@final
@frozen
class SignalReceived:
    """The agent was signalled."""

    number: int


@final
@frozen
class Clock:
    """Time has passed; ``due`` if the state's ``wake_at`` was reached."""

    due: bool = False


Input = (
    Begin
    | NodeChecked
    | NodeUnhealthy
    | RoundJoined
    | StandingBy
    | PeerDeclined
    | RoundEnded
    | JobClosed
    | RendezvousFailed
    | WorkerHung
    | StacksDumped
    | WorkersExited
    | StartFailed
    | Diagnosed
    | WorkersGone
    | SignalReceived
    | Clock
)

# --- commands -------------------------------------------------------------------------------------------------------


@final
@frozen
class CheckNode:
    """Run the node's checks; answered by :class:`NodeChecked`."""


@final
@frozen
class JoinRound:
    """Ask the rendezvous for a place in the next round."""


@final
@frozen
class StartWorkers:
    """Start the workers of this assignment."""

    assignment: Assignment


@final
@frozen
class Diagnose:
    """Find out why a worker ended; with a ``budget``, also ask what to do about it."""

    exit: WorkerExited
    budget: RestartBudget | None
    start_failed: bool = False
    hung: bool = False


@final
@frozen
class Decide:
    """Ask what to do about a failure that is known already; answered by :class:`Diagnosed`."""

    failure: FailureRecord
    budget: RestartBudget


@final
@frozen
class DumpStacks:
    """Have all workers write their stacks into their logs; answered by :class:`StacksDumped`."""

    local_rank: int


@final
@frozen
class StopWorkers:
    """Stop all workers; answered by :class:`WorkersGone`."""

    signal_number: int
    grace_seconds: float


@final
@frozen
class EndRound:
    """Record that the round has ended, unless somebody did before."""

    end: RoundEnd


@final
@frozen
class ReportDone:
    """Tell the others that this node's workers have all succeeded."""


@final
@frozen
class Leave:
    """Tell the others that this node goes away."""


@final
@frozen
class Decline:
    """Tell the others, if they can be reached soon, why this node does not join; it goes away."""

    problem: str


@final
@frozen
class Finish:
    """The run is over."""

    outcome: Outcome
    reason: str


Command = (
    CheckNode
    | JoinRound
    | StartWorkers
    | Diagnose
    | Decide
    | DumpStacks
    | StopWorkers
    | EndRound
    | ReportDone
    | Leave
    | Decline
    | Finish
)


@final
@frozen
class AgentStep:
    """What one step of the machine results in."""

    state: State
    commands: tuple[Command, ...]
    reason: str
