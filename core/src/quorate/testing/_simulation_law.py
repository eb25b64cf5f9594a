"""The names of what must hold in every simulated world, and the error of a broken law.

What does not live here: checking the laws (``_simulation_laws``, ``_simulation_scenario``).
"""

from __future__ import annotations

from enum import Enum
from typing import final


@final
class Law(str, Enum):
    """The laws by name; ``text`` says what each one promises."""

    text: str

    def __new__(cls, name: str, text: str) -> Law:
        law = str.__new__(cls, name)
        law._value_, law.text = name, text
        return law

    WRITTEN_ONCE = "written-once", "nothing that was sealed or ended is written again"
    ROUNDS_IN_ORDER = (
        "rounds-in-order",
        "a round is sealed only after the one before has ended, and none after the job's end",
    )
    ONE_WORLD = (
        "one-world",
        "all members of a round have the same world: its size, its master, its restart count",
    )
    DENSE_RANKS = (
        "dense-ranks",
        "group ranks are given once each, global ranks follow them without gap or overlap",
    )
    SIZE_IN_BOUNDS = "size-in-bounds", "a round has at least min_nodes and at most max_nodes members"
    WORKERS_IN_SEALED_ROUNDS = (
        "workers-in-sealed-rounds",
        "workers start only with an assignment of a sealed round, under its sealer",
    )
    STOPPED_BEFORE_STARTED = (
        "stopped-before-started",
        "a node's workers are gone before its next workers start, and before its agent finishes",
    )
    ONE_RUNNING_WORLD = (
        "one-running-world",
        "workers start in a round only when those of earlier rounds have stopped on every node that was awake and "
        "connected all along, and has not left",
    )
    ONE_RANK_ZERO = (
        "one-rank-zero",
        "with `when_cut_off=freeze` or `stop`, workers of rank 0 run on one node only, unless the other node has said "
        "that it leaves, or its agent was paused",
    )
    MAJORITY = (
        "majority",
        "with `majority=true`, a round after the first has more than half of the nodes of the round before",
    )
    NO_LATE_STEP = (
        "no-late-step",
        "a live worker takes no step of an old world once it counts as gone, and gets its next assignment only then",
    )
    ENDS_ARE_NOTICED = (
        "ends-are-noticed",
        "a node that is awake and connected stops its workers soon after their round has ended",
    )
    NO_FALSE_LOSS = (
        "no-false-loss",
        "no node that has not left is declared lost if it was awake and connected, or its heartbeats have arrived, or "
        "it paused only when all others did",
    )
    NO_NODE_LEFT_OUT = (
        "no-node-left-out",
        "a round that is not full takes in every node that is awake, connected and in line",
    )
    ONE_REASON = "one-reason", "every node gets the same end that was recorded"
    SUCCESS_IS_SUCCESS = (
        "success-is-success",
        "a job succeeds only when all workers of all members of one round have succeeded",
    )
    BUDGET = "budget", "restarts are counted one by one, only for failures, and never beyond max_restarts"
    OUTCOME_IS_RECORDED = (
        "outcome-is-recorded",
        "an agent that could reach the store until the end finishes as was recorded",
    )
    NO_BUSY_LOOP = "no-busy-loop", "a machine comes to rest after finitely many steps"
    CONVERGENCE = (
        "convergence",
        "once faults have stopped, all live nodes are soon in one round, or in line for the next",
    )
    COMPLETION = (
        "completion",
        "after that, when all workers succeed, or the job has ended, every agent soon finishes",
    )
    TABLE = "table", "a machine changes its phase only as its table lists"
    NO_CRASH = "no-crash", "no machine raises an exception"


@final
class SimulationError(AssertionError):
    """A law was broken.  ``law`` names it; the message holds the seed and the transcript that led to it."""

    def __init__(self, law: Law, problem: str, seed: int, transcript: list[str]) -> None:
        self.law, self.problem, self.seed, self.transcript = law, problem, seed, transcript
        super().__init__(f"{law.value}: {problem}\nseed {seed}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.law, self.problem, self.seed, self.transcript)
