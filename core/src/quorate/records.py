"""Frozen records that cross a hook or the wire, and the closed sets they use.

Everything here is plain data: no I/O, no behaviour beyond validation and small derivations.  How a record is
written to the store is in :mod:`quorate.rendezvous._wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, final

from attrs import evolve, field, frozen
from attrs.validators import ge, instance_of, le, min_len, optional

from ._bounded import LONGEST_DELAY_SECONDS

__all__ = [
    "AgentPhase",
    "Assignment",
    "Cause",
    "Event",
    "FailureRecord",
    "NodeRecord",
    "RendezvousWaiting",
    "RestartBudget",
    "RestartDecision",
    "RoundEnd",
    "RoundSummary",
    "Verdict",
    "WorkerExited",
    "WorkerLaunch",
    "WorkerLogs",
    "WorkerStatus",
    "evolve",
]


class TextEnum(str, Enum):
    """Base of closed sets: a member is written as its value, in messages and in JSON."""

    def __str__(self) -> str:
        return str(self.value)


@final
class Cause(TextEnum):
    """Why a worker, a round or a job ended."""

    SUCCEEDED = "succeeded"
    EXCEPTION = "exception"
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out_of_memory"
    BROKEN_COLLECTIVE = "broken_collective"  # a worker failed because its connection to another one broke
    HANG = "hang"
    START_FAILED = "start_failed"
    UNHEALTHY = "unhealthy"
    NODE_JOINED = "node_joined"
    NODE_LEFT = "node_left"
    NODE_LOST = "node_lost"
    TOO_FEW_NODES = "too_few_nodes"
    STORE_LOST = "store_lost"
    CONFIGURATION = "configuration"
    STOPPED = "stopped"
    PREEMPTED = "preempted"  # the scheduler has announced that it will end the job or take the node


@final
class Verdict(TextEnum):
    """What the job does after a round has ended."""

    RESTART = "restart"  # run again, and count it against the job's restart budget
    RESCALE = "rescale"  # run again in a new world, at no cost
    SUCCEEDED = "succeeded"  # the job is over and succeeded
    FAILED = "failed"  # the job is over and failed
    STOPPED = "stopped"  # the job is over because a person or a program stopped it

    @property
    def is_terminal(self) -> bool:
        """Whether no round follows."""
        return self not in (Verdict.RESTART, Verdict.RESCALE)


@final
class AgentPhase(TextEnum):
    """Where an agent is."""

    NEW = "new"
    CHECKING = "checking"  # no workers; the node's health checks run
    JOINING = "joining"  # no workers; waiting for a sealed round
    RUNNING = "running"  # workers run
    FROZEN = "frozen"  # workers stand still until it is known whether their round goes on
    BARRIER = "barrier"  # this node's workers have succeeded; waiting for the other nodes
    STOPPING = "stopping"  # workers are being stopped; nothing new until all of them are gone
    FINISHED = "finished"


@final
class WorkerStatus(TextEnum):
    """How one worker is."""

    RUNNING = "running"
    RELEASED = "released"  # it has left its world and waits for the next one
    DELIVERED = "delivered"  # its function has returned; its process waits for the others of its node
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # it ended after the agent had asked it to


@final
@frozen
class NodeRecord:
    """What one agent publishes when it joins a round.

    ``node_id`` is unique to this agent process (not to the machine).  ``address`` and ``port`` are where its rank-0
    worker's ``MASTER_ADDR``/``MASTER_PORT`` would be, should it become the round's first node; the port is held by
    the agent from before it is published.  ``rank_hint`` is an explicit ``--node-rank``.  ``declined`` is why the node
    does not join, empty for one that does.

    ``outside_address`` is used in the place of a loopback ``address`` if the round spans hosts.

    The last fields tell two jobs of one name apart; a field that is empty or ``None`` is not known.  ``command`` is the
    name of the script, module, program or function, ``arguments`` a checksum of its arguments.
    """

    node_id: str = field(validator=min_len(1))
    role: str
    local_world_size: int = field(validator=ge(1))
    host: str = ""
    address: str = "127.0.0.1"
    port: int = 0
    shares_store: bool = False
    rank_hint: int | None = None
    plugin_digest: str = ""
    previous_round: int | None = None
    previous_rank: int | None = None
    declined: str = ""
    outside_address: str = ""
    min_nodes: int | None = None
    max_nodes: int | None = None
    max_restarts: int | None = None
    version: str = ""
    user: str = ""
    command: str = ""
    arguments: str = ""

    @property
    def name(self) -> str:
        """The node's name for people: its host, or its id where the host is not known."""
        return self.host or self.node_id


@final
@frozen
class Assignment:
    """One node's place in a sealed round.  All ranks count from 0; ``first_*`` are the ranks of local rank 0.

    ``missing`` names the nodes of the round before that did not come back, unless they had announced it.
    """

    round_number: int
    node_id: str
    role: str
    local_world_size: int
    group_rank: int
    group_world_size: int
    first_rank: int
    world_size: int
    first_role_rank: int
    role_world_size: int
    master_addr: str
    master_port: int
    shares_store: bool = False
    restart_count: int = 0
    standby: bool = False
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def generation(self) -> int:
        """The fencing number of this round's workers, from 1: it rises with each sealed round of the job."""
        return self.round_number + 1


@final
@frozen
class FailureRecord:
    """What one failed worker left behind.

    ``exit_code`` is negative for a signal.  ``message`` is at most a few KiB.  ``timestamp_ns`` is wall time on the
    worker's host, for people.  With ``has_both_streams``, ``stderr_tail`` has lines of stdout too.
    """

    rank: int
    local_rank: int
    pid: int
    exit_code: int
    cause: Cause
    message: str
    timestamp_ns: int
    error_file: str = ""
    error_data: Mapping[str, Any] | None = None
    node_id: str = ""
    host: str = ""
    role: str = ""
    restart_count: int = 0
    stderr_tail: tuple[str, ...] = ()
    has_both_streams: bool = False


@final
@frozen
class RoundEnd:
    """Why a round ended, as recorded by the first node that had a reason; every node prints the same one.

    ``restart_count`` is the job-wide count that the *next* round exports (or, for a terminal verdict, the last).
    ``lost`` names the node ids that the next round must not wait for.  ``missing`` is not recorded but added when the
    next round is sealed: the nodes that turned out to be lost with this round, or left (see :class:`Assignment`).
    ``is_final`` is that of the policy's decision.  ``lost_counts`` are the counters of the last heartbeats that were
    read of the nodes ``lost_ranks``, where silence alone made them lost: one that has sent another is alive.
    Where the scheduler has announced the end (``Cause.PREEMPTED``), ``signal_number`` is how it did, and
    ``grace_seconds`` is what it leaves to the workers of every node.
    """

    round_number: int
    cause: Cause
    verdict: Verdict
    reason: str
    node_id: str = ""
    host: str = ""
    rank: int | None = None
    restart_count: int = 0
    delay_seconds: float = 0.0
    lost: tuple[str, ...] = ()
    lost_ranks: tuple[int, ...] = ()
    lost_counts: tuple[int, ...] = ()
    failure: FailureRecord | None = None
    missing: tuple[str, ...] = ()
    is_final: bool = False
    signal_number: int = 0
    grace_seconds: float = 0.0


@final
@frozen
class RoundSummary:
    """What is known of a sealed round without reading its members."""

    round_number: int
    group_world_size: int
    world_size: int
    min_nodes: int
    max_nodes: int
    restart_count: int


@final
@frozen
class RendezvousWaiting:
    """What a node waits for, once it has waited for some seconds.

    Arguments:
        round_number: the round that it wants to join, or is in.
        waited_seconds: how long it has waited.
        left_seconds: how long it goes on; ``None``: until another input.
        nodes, missing: how many nodes are here, and how many are missing to ``min_nodes``; 0 where that is not known.
        hosts: the first hosts of those that are here.
        endpoint: where the nodes meet.
        problem: what the last attempt to reach the store came to; empty where it answers.
        reason: all of this in a sentence.
    """

    round_number: int
    waited_seconds: float
    left_seconds: float | None = None
    nodes: int = 0
    missing: int = 0
    hosts: tuple[str, ...] = ()
    endpoint: str = ""
    problem: str = ""
    reason: str = ""


@final
@frozen
class RestartBudget:
    """The job's restarts: how many were used, how many are allowed in all.

    ``last_cause`` and ``last_rank`` say how the round before this one ended; ``repeats`` counts the rounds in a row
    that ended in that way (0 if the last one did not end by a failure).
    """

    used: int
    allowed: int
    last_cause: Cause | None = None
    last_rank: int | None = None
    repeats: int = 0

    def repeats_of(self, failure: FailureRecord) -> int:
        """Return how many rounds in a row, just before this one, the same rank ended by the same cause."""
        same = self.last_cause is failure.cause and self.last_rank == failure.rank
        return self.repeats if same else 0

    @property
    def remaining(self) -> int:
        return max(0, self.allowed - self.used)


@final
@frozen
class RestartDecision:
    """A policy's answer to a failure: what happens next, why, and how many seconds to wait first (a day at most).

    ``exclude_node`` takes the node whose worker failed out of the job, unless the job ends anyway.  ``is_final`` says
    of a job that ends that starting it again cannot help: ``quorate run`` then has an exit code of its own.
    """

    verdict: Verdict = field(validator=instance_of(Verdict))
    reason: str = field(default="", validator=instance_of(str))
    delay_seconds: float = field(default=0.0, validator=[instance_of((int, float)), ge(0.0), le(LONGEST_DELAY_SECONDS)])
    exclude_node: bool = field(default=False, validator=instance_of(bool))
    is_final: bool = field(default=False, validator=instance_of(bool))


@final
@frozen
class WorkerLogs:
    """Where one worker's streams go.

    A path of ``None`` means the agent's own stream.  With ``tee_*`` the stream goes to the file *and* to the console.
    ``prefix`` is put before each console line (``None``: the bytes go through as they come).  ``console`` is false
    for a worker that the local-ranks filter hides.  ``duplicates`` are ``(stream, path, words)``: lines of
    ``"stdout"``/``"stderr"`` that contain any of ``words`` are also appended to ``path``.
    """

    stdout: str | None = None
    stderr: str | None = None
    tee_stdout: bool = False
    tee_stderr: bool = False
    prefix: str | None = None
    console: bool = True
    duplicates: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@final
@frozen
class WorkerLaunch:
    """Everything a starter needs to start one worker.

    ``entrypoint`` is a command (``args`` follow it in argv) or a callable (called with ``args``).  ``environment`` is
    the whole environment of the worker, not a difference.  ``error_file`` is where it should write its error.

    ``cpus`` are the CPUs that the worker and all that it starts may use, ``None`` for those of the agent.  The worker's
    memory comes from the NUMA node ``memory_node`` as long as that has some; ``None`` leaves the kernel's choice.  A
    starter binds a worker before its program runs (:mod:`quorate.affinity`), or refuses it with a StartError.
    """

    local_rank: int
    rank: int
    role: str
    entrypoint: str | Callable[..., Any]
    args: tuple[Any, ...]
    environment: Mapping[str, str]
    error_file: str
    logs: WorkerLogs = field(factory=WorkerLogs)
    cpus: frozenset[int] | None = field(default=None, validator=optional(min_len(1)))
    memory_node: int | None = None


@final
@frozen
class WorkerExited:
    """One worker has ended.  ``exit_code`` is negative for a signal; ``return_value`` is a function's result.

    ``stopped`` says that the agent had asked it to stop before: a victim, not a cause.  ``stderr_tail`` are the last
    lines of its stderr, with ``has_both_streams`` those of stdout among them.  ``exception`` is that of the last
    traceback there, which may stand before ``stderr_tail``.
    """

    local_rank: int
    pid: int
    exit_code: int
    timestamp_ns: int
    return_value: Any = None
    stopped: bool = False
    stderr_tail: tuple[str, ...] = ()
    problem: str = ""
    exception: str = ""
    has_both_streams: bool = False


@final
@frozen
class Event:
    """Something an observer may want to know.

    ``name`` and ``details`` are an :class:`quorate.events.EventName` and its record, which can be read as a mapping of
    JSON-able values too.
    """

    name: str
    reason: str
    node_id: str = ""
    timestamp_ns: int = 0
    details: Mapping[str, Any] = field(factory=dict)
