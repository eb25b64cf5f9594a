"""What must hold in every simulated world, checked as it happens: the laws of the protocol and of the agents.

``LAWS`` names them all.  What does not live here: that everybody converges once faults have stopped
(``_simulation_scenario``), and the world itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, final

from ..agent import _protocol as agent
from ..records import Assignment, RoundEnd, Verdict
from ..rendezvous._wire import decode_end, decode_object

if TYPE_CHECKING:
    from ._simulation import World
    from ._simulation_node import SimulatedNode

__all__ = ["LAWS", "Judge", "SimulationError"]

#: The laws by name; the last two are judged once the faults have stopped.
LAWS: Mapping[str, str] = {
    "written-once": "nothing that was sealed or ended is written again",
    "rounds-in-order": "a round is sealed only after the one before has ended, and none after the job's end",
    "one-world": "all members of a round have one world: its size, its master, its restart count",
    "dense-ranks": "group ranks are given once each, global ranks follow them without gap or overlap",
    "size-in-bounds": "a round has at least min_nodes and at most max_nodes members",
    "workers-in-sealed-rounds": "workers start only with an assignment of a sealed round, under its sealer",
    "stopped-before-started": "a node's workers are gone before its next ones start, and before its agent finishes",
    "one-running-world": "workers start in a round only when those of earlier rounds have stopped on every node that "
    "was awake and connected all along, and has not left",
    "ends-are-noticed": "a node that is awake and connected stops its workers soon after their round has ended",
    "no-false-loss": "no node is declared lost that was awake and connected, or paused only when all others did",
    "nobody-left-out": "a round that is not full takes in everyone who is awake, connected and in line",
    "one-reason": "every node hears the very end that was recorded",
    "success-is-success": "a job succeeds only when all workers of all members of one round have succeeded",
    "budget": "restarts are counted one by one, only for failures, and never beyond max_restarts",
    "outcome-is-recorded": "an agent that reached the store to the last finishes as was recorded",
    "no-busy-loop": "a machine comes to rest",
    "convergence": "once faults have stopped, all who are alive are soon in one round, or in line for the next",
    "completion": "then, when all workers succeed, or the job has ended, every agent soon finishes",
}


@final
class SimulationError(AssertionError):
    """A law was broken.  ``law`` names it; the message holds the seed and the transcript that led to it."""

    def __init__(self, law: str, problem: str, seed: int, transcript: list[str]) -> None:
        self.law, self.problem, self.seed, self.transcript = law, problem, seed, transcript
        super().__init__(f"{law}: {problem}\nseed {seed}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.law, self.problem, self.seed, self.transcript)


@final
class _Round:
    """What is known of one round, by the store's own word."""

    __slots__ = ("assignments", "end", "ended_at", "first", "group_size", "number", "sealer", "world_size")

    def __init__(self, number: int, sealer: int, group_size: int, world_size: int) -> None:
        self.number, self.sealer, self.group_size, self.world_size = number, sealer, group_size, world_size
        self.assignments: dict[int, tuple[str, Assignment]] = {}  # group rank -> who has it
        self.first: Assignment | None = None
        self.end: RoundEnd | None = None
        self.ended_at = 0.0


@final
class Judge:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rounds: dict[int, _Round] = {}
        self.is_over = False
        self._running: dict[int, dict[SimulatedNode, float]] = {}  # round -> node -> since when its workers run
        self._successes: set[tuple[str, int]] = set()

    def fail(self, law: str, problem: str) -> NoReturn:
        """Say that ``law`` was broken."""
        self.world.remark(f"LAW BROKEN: {law}: {problem}")
        raise SimulationError(law, problem, self.world.seed, list(self.world.transcript))

    def rounds_running(self) -> dict[int, int]:
        """Return on how many nodes the workers of each round run."""
        return {number: len(members) for number, members in self._running.items()}

    def done_and_gone(self, number: int) -> int:
        """Return how many members of a round have succeeded in it and are not up any more."""
        names = [name for name, _ in self.rounds[number].assignments.values() if (name, number) in self._successes]
        return sum(not self.world.by_name[name].is_up for name in names)

    # --- what is written ----------------------------------------------------------------------------------------------

    def writes(self, node: SimulatedNode, key: str, value: bytes) -> None:
        """``node`` writes ``key``."""
        number, _, name = key.partition("/")
        if name not in ("sealed", "ended"):
            return
        if key in self.world.network.values:
            self.fail("written-once", f"{node.name} writes {key} again")
        if name == "sealed":
            self._sealed(node, int(number), key, value)
        else:
            self._ended(node, int(number), key, value)

    def _sealed(self, node: SimulatedNode, number: int, key: str, value: bytes) -> None:
        data = decode_object(key, value, "sealed")
        if data.get("refusal"):
            self.world.remark(f"round {number} is refused: {data['refusal']}")
            return
        self.world.remark(f"round {number} is sealed by {node.name}: {data['nodes']} node(s)")
        before = self.rounds.get(number - 1)
        if self.is_over or (number > 0 and (before is None or before.end is None)):
            self.fail("rounds-in-order", f"round {number} is sealed although round {number - 1} has not ended for it")
        low, high = node.settings.min_nodes, node.settings.max_nodes
        if not low <= data["nodes"] <= high:
            self.fail("size-in-bounds", f"round {number} has {data['nodes']} nodes, not {low} to {high}")
        self.rounds[number] = _Round(number, data["sealer"], data["nodes"], data["world_size"])
        if data["nodes"] < high and node.healthy_since() < self.world.now - 2 * node.settings.lease_timeout:
            self._check_left_out(node, number, data["sealer"])

    def _check_left_out(self, sealer: SimulatedNode, number: int, ticket: int) -> None:
        settled = self.world.now - 2 * sealer.settings.lease_timeout
        values = self.world.network.values
        for node in self.world.nodes:
            state = node.state
            waits = state.round_number == number and state.ticket > 0 and node.in_line_since() < settled
            if not waits or not node.is_up or node.finished is not None or node.healthy_since() > settled:
                continue
            if f"{number}/assignment/{ticket}/{state.ticket}" not in values:
                self.fail("nobody-left-out", f"round {number} leaves out {node.name}, which was in line in time")

    def _ended(self, node: SimulatedNode, number: int, key: str, value: bytes) -> None:
        end = decode_end(key, value)
        self.world.remark(
            f"round {number} is ended by {node.name}: {end.cause.value}, {end.verdict.value}: {end.reason}"
        )
        this = self.rounds.get(number)
        if this is None:
            self.fail("rounds-in-order", f"{node.name} ends round {number}, which is not sealed")
        this.end, this.ended_at = end, self.world.now
        self.is_over = self.is_over or end.verdict.is_terminal
        self._check_success(this, end)
        self._check_losses(this, end)
        for member in self._running.get(number, ()):
            self._check_notice_later(member, number)

    def _check_success(self, this: _Round, end: RoundEnd) -> None:
        if end.verdict is not Verdict.SUCCEEDED:
            return
        done = sum((name, this.number) in self._successes for name, _ in this.assignments.values())
        if done != this.group_size:
            self.fail("success-is-success", f"only {done} of {this.group_size} members of round {this.number} are done")

    def _check_losses(self, this: _Round, end: RoundEnd) -> None:
        if end.cause.value != "node_lost":
            return
        patience = 2 * self.world.lease_seconds
        for rank in end.lost_ranks:
            if rank not in this.assignments:
                continue
            node = self.world.by_name[this.assignments[rank][0]]
            if node.is_up and node.finished is None and node.troubled_alone_until < self.world.all_paused_at - patience:
                self.fail("no-false-loss", f"{node.name} only paused when all did, and is declared lost: {end.reason}")
            if (
                node.is_up
                and node.finished is None
                and node.healthy_since() < self.world.now - patience
                and node.agent.signal_number is None
            ):
                self.fail("no-false-loss", f"{node.name} is declared lost: {end.reason}")

    # --- what nodes do ------------------------------------------------------------------------------------------------

    def joins(self, node: SimulatedNode, assignment: Assignment) -> None:
        """``node`` has read its assignment."""
        this = self.rounds.get(assignment.round_number)
        if this is None:
            self.fail(
                "workers-in-sealed-rounds",
                f"{node.name} has an assignment of round {assignment.round_number}, not sealed",
            )
        first = this.first
        if first is None:
            this.first = first = assignment
        for name in ("group_world_size", "world_size", "master_addr", "master_port", "restart_count"):
            if getattr(first, name) != getattr(assignment, name):
                self.fail("one-world", f"round {assignment.round_number} has two worlds: {first} and {assignment}")
        if (assignment.group_world_size, assignment.world_size) != (this.group_size, this.world_size):
            self.fail("one-world", f"{assignment} is not of the world that was sealed")
        rank = assignment.group_rank
        if rank in this.assignments or not 0 <= rank < this.group_size:
            self.fail(
                "dense-ranks", f"group rank {rank} of round {assignment.round_number} is given to {node.name}, too"
            )
        this.assignments[rank] = node.name, assignment
        self._check_neighbours(this, assignment)
        self._check_budget(node, this, assignment)

    def _check_neighbours(self, this: _Round, assignment: Assignment) -> None:
        """Global ranks go on where the neighbour's end, so all are dense once all are here."""
        rank, last = assignment.group_rank, assignment.first_rank + assignment.local_world_size
        before, after = this.assignments.get(rank - 1), this.assignments.get(rank + 1)
        starts_right = (
            assignment.first_rank == 0
            if rank == 0
            else (before is None or before[1].first_rank + before[1].local_world_size == assignment.first_rank)
        )
        ends_right = (
            last == this.world_size if rank == this.group_size - 1 else (after is None or after[1].first_rank == last)
        )
        if not (starts_right and ends_right):
            self.fail("dense-ranks", f"the global ranks of group rank {rank} leave a gap or overlap: {assignment}")

    def _check_budget(self, node: SimulatedNode, this: _Round, assignment: Assignment) -> None:
        before = self.rounds.get(this.number - 1)
        used = before.first.restart_count if before is not None and before.first is not None else None
        if assignment.restart_count > node.agent.max_restarts:
            self.fail(
                "budget", f"round {this.number} is restart {assignment.restart_count} of {node.agent.max_restarts}"
            )
        if used is not None and before is not None and before.end is not None:
            most = used + (before.end.verdict is Verdict.RESTART)
            if not used <= assignment.restart_count <= most:
                self.fail(
                    "budget", f"{before.end.verdict.value} made restart count {used} into {assignment.restart_count}"
                )

    def starts(self, node: SimulatedNode, assignment: Assignment) -> None:
        """The agent of ``node`` starts workers."""
        world, number = self.world, assignment.round_number
        world.note(
            node,
            "workers",
            f"start: round {number}, group rank {assignment.group_rank} of {assignment.group_world_size}",
        )
        if node.running is not None:
            self.fail("stopped-before-started", f"{node.name} starts workers beside those of round {node.running}")
        if f"{number}/sealed" not in world.network.values or assignment.node_id != node.name:
            self.fail("workers-in-sealed-rounds", f"{node.name} starts workers of round {number}, which is not sealed")
        for earlier, members in self._running.items():
            if earlier < number:
                for other, since in members.items():
                    self._check_overlap(node, number, other, earlier, since)
        self._running.setdefault(number, {})[node] = world.now
        this = self.rounds[number]
        if this.end is not None:
            self._check_notice_later(node, number)

    def _check_overlap(
        self, node: SimulatedNode, number: int, other: SimulatedNode, earlier: int, since: float
    ) -> None:
        end = self.rounds[earlier].end
        if end is not None and other.name in end.lost and other.agent.phase is agent.Phase.STOPPING:
            return  # it has said that it leaves, and is stopping its workers; nobody waits for those
        excuse = since - self.world.lease_seconds - self.world.notice_seconds
        if other.is_up and not other.is_troubled and other.troubled_until < excuse:
            self.fail(
                "one-running-world",
                f"{node.name} starts workers of round {number} while {other.name}, always awake and connected, "
                f"still runs those of round {earlier}",
            )

    def stops(self, node: SimulatedNode) -> None:
        """No worker of ``node`` runs any more."""
        for number, members in list(self._running.items()):
            members.pop(node, None)
            if not members:
                del self._running[number]

    def succeeds(self, node: SimulatedNode, assignment: Assignment) -> None:
        """All workers of ``node`` in this round have succeeded."""
        self._successes.add((node.name, assignment.round_number))

    def hears(self, node: SimulatedNode, end: RoundEnd) -> None:
        """``node`` is told how a round ended."""
        this = self.rounds.get(end.round_number)
        if this is None or this.end != end:
            self.fail(
                "one-reason", f"{node.name} hears of an end of round {end.round_number} that nobody recorded: {end}"
            )

    def finishes(self, node: SimulatedNode) -> None:
        """The agent of ``node`` has finished."""
        finish, state = node.finished, node.agent
        assert finish is not None
        self.world.note(node, "agent", f"{finish.outcome.value}: {finish.reason}")
        if node.running is not None:
            self.fail("stopped-before-started", f"{node.name} finishes while its workers run")
        if finish.outcome is agent.Outcome.SUCCEEDED and not isinstance(
            finish.why, (agent.WorkersSucceeded, agent.RendezvousIsLost)
        ):
            recorded = any(r.end is not None and r.end.verdict is Verdict.SUCCEEDED for r in self.rounds.values())
            if not recorded:
                self.fail("outcome-is-recorded", f"{node.name} succeeds in a job that has not")
        patience = state.settings.close_timeout + self.world.notice_seconds
        untroubled = state.trouble is None and node.healthy_since() < self.world.now - patience
        if finish.outcome is agent.Outcome.FAILED and untroubled and state.end is not None:
            this = self.rounds.get(state.end.round_number)
            if this is None or this.end != state.end:
                self.fail("outcome-is-recorded", f"{node.name} fails as {state.end.reason!r}, which is not recorded")

    # --- in time ------------------------------------------------------------------------------------------------------

    def _check_notice_later(self, node: SimulatedNode, number: int) -> None:
        self.world.after(self.world.notice_seconds, lambda: self._check_notice(node, number))

    def _check_notice(self, node: SimulatedNode, number: int) -> None:
        if node.running is None or node.running.round_number != number or not node.is_up:
            return
        if node.agent.phase is agent.Phase.STOPPING:
            return
        since = node.healthy_since()
        wait = since + self.world.notice_seconds - self.world.now
        if wait > 0:
            self.world.after(min(wait, 5.0) + 0.01, lambda: self._check_notice(node, number))
            return
        self.fail("ends-are-noticed", f"{node.name} still runs round {number}, which has ended, and has not noticed")
