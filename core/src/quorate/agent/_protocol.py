"""The vocabulary of the agent machine: its inputs, why workers are stopped, and its commands.

What does not live here: the state (``_state``), what happens with inputs (:mod:`quorate.agent._machine`), and how
commands are carried out (``_runner``).
"""

from __future__ import annotations

from enum import Enum
from typing import final

from attrs import frozen

from ..records import AgentPhase, Assignment, FailureRecord, RestartBudget, RestartDecision, RoundEnd, WorkerExited
from ..rendezvous._outputs import (
    CutOff as CutOff,
    JobClosed as JobClosed,
    Output as Output,
    PeerDeclined as PeerDeclined,
    Reconnected as Reconnected,
    RendezvousFailed as RendezvousFailed,
    RoundEnded as RoundEnded,
    RoundJoined as RoundJoined,
    StandingBy as StandingBy,
    Waiting as Waiting,
)

Phase = AgentPhase


@final
class Outcome(str, Enum):
    """How the agent's run ends."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # workers failed, here or elsewhere
    CLOSED = "closed"  # the job had ended before this node joined a round
    SIGNAL = "signal"
    ERROR = "error"  # the rendezvous could not go on
    UNHEALTHY = "unhealthy"  # this node is not fit for the job, or was excluded from it
    PREEMPTED = "preempted"  # the scheduler ends the job, or takes this node


@final
@frozen
class Grace:
    """Seconds that workers get between the request to stop and SIGKILL, by cause."""

    restart: float = 30.0  # another worker failed, the round starts again
    rescale: float = 30.0  # nodes came or went
    preemption: float = 30.0  # this agent was signalled
    exit: float = 30.0  # the job is over


# --- inputs; the outputs of the rendezvous are inputs, too ------------------------------------------------------------


@final
@frozen
class Begin:
    """Run."""


@final
@frozen
class NodeChecked:
    """The checks of this node are over; ``problems`` are sentences, none if the node is healthy."""

    problems: tuple[str, ...] = ()


@final
@frozen
class NodeUnhealthy:
    """A check, a service or a leftover process shows that this node should not go on."""

    problem: str


@final
@frozen
class CannotFreeze:
    """The answer to :class:`FreezeWorkers` where the workers cannot be made to stand still."""

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
    """The workers have written their stacks, as far as they could; ``lines`` are the end of the hung worker's."""

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
    """All workers and everything they started have ended, but for ``kept``: live workers that have left their world.

    ``kept`` are local ranks.
    """

    kept: frozenset[int] = frozenset()


@final
@frozen
class SignalReceived:
    """The agent was signalled.  ``is_person``: by a person at its terminal, who pressed Ctrl-C."""

    number: int
    is_person: bool = False


@final
@frozen
class PreemptionWarned:
    """The scheduler, or a service, has announced that this node or the whole job ends soon.

    ``grace_seconds`` is what is left to the workers, ``None`` where it is not known.  ``min_nodes`` is how many nodes
    the job needs, 0 where that is not known.
    """

    number: int
    grace_seconds: float | None
    reason: str
    whole_job: bool = False
    min_nodes: int = 0


@final
@frozen
class Clock:
    """Time has passed; ``due`` if the state's ``wake_at`` was reached."""

    due: bool = False


Input = (
    Begin
    | NodeChecked
    | NodeUnhealthy
    | CannotFreeze
    | WorkerHung
    | StacksDumped
    | WorkersExited
    | StartFailed
    | Diagnosed
    | WorkersGone
    | SignalReceived
    | PreemptionWarned
    | Clock
    | Output
)

# --- why workers are stopped ----------------------------------------------------------------------------------------


@final
@frozen
class RoundIsOver:
    """The round is over: its recorded end decides."""


@final
@frozen
class NodeIsUnhealthy:
    """As :class:`RoundIsOver`, but this node does not join another round."""

    problem: str


@final
@frozen
class RendezvousIsLost:
    """The rendezvous cannot go on, and without it this node may not run workers."""

    failure: RendezvousFailed


@final
@frozen
class WorkersSucceeded:
    """This node's workers have succeeded and the exit barrier is over."""


@final
@frozen
class NodeIsPreempted:
    """The scheduler ends the job, or takes this node: its recorded end says which; this node leaves."""

    reason: str


@final
@frozen
class AgentSignalled:
    """The agent was signalled."""

    number: int


@final
@frozen
class NoNextRound:
    """Live workers waited for a round that this node does not get into: ``finish`` says how the run ends."""

    finish: Finish


StopReason = (
    RoundIsOver | NodeIsUnhealthy | RendezvousIsLost | WorkersSucceeded | NoNextRound | NodeIsPreempted | AgentSignalled
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
    """Start the workers of this assignment; the live workers with the local ranks ``kept`` are told it instead."""

    assignment: Assignment
    kept: frozenset[int] = frozenset()


@final
@frozen
class Diagnose:
    """Find out why a worker ended; with a ``budget``, also ask the restart policy.  Answered by :class:`Diagnosed`."""

    exit: WorkerExited
    budget: RestartBudget | None
    start_failed: bool = False
    hung: bool = False


@final
@frozen
class Decide:
    """Ask the restart policy about a failure that was diagnosed before; answered by :class:`Diagnosed`."""

    failure: FailureRecord
    budget: RestartBudget


@final
@frozen
class DumpStacks:
    """Have all workers write their stacks to their logs; answered by :class:`StacksDumped`."""

    local_rank: int


@final
@frozen
class StopWorkers:
    """Stop all workers; answered by :class:`WorkersGone`."""

    signal_number: int
    grace_seconds: float


@final
@frozen
class ReleaseWorkers:
    """Have live workers leave their world, and stop the others as by :class:`StopWorkers`.

    A live worker that has not left after ``release_seconds``, or whose local rank is ``given_up``, is stopped, too.
    Answered by :class:`WorkersGone`.
    """

    signal_number: int
    grace_seconds: float
    release_seconds: float
    given_up: int | None = None


@final
@frozen
class FreezeWorkers:
    """Have all workers and what they started stand still, those that are about to be started too.

    Answered by :class:`CannotFreeze` where that is not possible.
    """


@final
@frozen
class ThawWorkers:
    """Have them go on."""


@final
@frozen
class AnnounceDeadline:
    """Write into the workers' deadline file how long they have; sent before the workers are asked to stop."""

    signal_number: int
    seconds: float
    reason: str


@final
@frozen
class EndRound:
    """Record the end of the round, unless another node has recorded one."""

    end: RoundEnd


@final
@frozen
class ReportDone:
    """Tell the others that this node's workers have all succeeded."""


@final
@frozen
class Leave:
    """Tell the others that this node leaves."""


@final
@frozen
class Decline:
    """Tell the others, if they can be reached soon, why this node does not join, and leave."""

    problem: str


@final
@frozen
class Finish:
    """The run is over.  ``why`` says what ended it, ``end`` is the recorded end of the round or the job, if any."""

    outcome: Outcome
    reason: str
    why: StopReason
    end: RoundEnd | None = None


Command = (
    CheckNode
    | JoinRound
    | StartWorkers
    | Diagnose
    | Decide
    | DumpStacks
    | StopWorkers
    | ReleaseWorkers
    | FreezeWorkers
    | ThawWorkers
    | AnnounceDeadline
    | EndRound
    | ReportDone
    | Leave
    | Decline
    | Finish
)
