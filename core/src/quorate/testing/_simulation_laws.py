"""What must hold in every simulated world, checked as it happens: the laws of the protocol and of the agents.

What does not live here: checking that all nodes converge once faults have stopped (``_simulation_scenario``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn, Protocol, final

from attrs import define, field

from ..agent import _protocol as agent
from ..agent._protocol import Finish
from ..agent._state import State as AgentState
from ..cut_off import WhenCutOff
from ..records import Assignment, Cause, RoundEnd, Verdict
from ..rendezvous import _machine
from ..rendezvous._protocol import FINAL, Input, Key, Phase, Settings
from ..rendezvous._state import State, Step
from ..rendezvous._wire import decode_assignment, decode_end, decode_object
from ._simulation_heartbeats import HeartbeatTimes
from ._simulation_law import Law, SimulationError
from ._simulation_network import Network
from ._simulation_timeline import Timeline


class Member(Protocol):
    """A node, as far as the laws look at it."""

    name: str
    settings: Settings
    agent: AgentState
    is_up: bool
    is_troubled: bool
    paused_until: float
    troubled_until: float
    troubled_alone_until: float
    finished: Finish | None

    @property
    def state(self) -> State: ...

    @property
    def running(self) -> Assignment | None: ...

    @property
    def has_waiting(self) -> bool: ...

    def healthy_since(self) -> float: ...

    def in_line_since(self) -> float: ...


@final
@define(eq=False)
class _Round:
    """What the store holds of one round."""

    number: int
    sealer: int
    group_size: int
    world_size: int
    assignments: dict[int, tuple[str, Assignment]] = field(factory=dict)  # group rank -> who has it
    first: Assignment | None = None
    end: RoundEnd | None = None
    ended_at: float = 0.0


@final
class Judge:
    """Watches one world; the world reports to it what happens."""

    def __init__(self, timeline: Timeline, network: Network) -> None:
        self._timeline, self._network = timeline, network
        self._members: dict[str, Member] = {}
        self._longest_lease = 0.0
        self.all_paused_at = -1e9
        self.rounds: dict[int, _Round] = {}
        self.is_over = False
        self._running: dict[int, dict[Member, float]] = {}  # round -> node -> since when its workers run
        self._successes: set[tuple[str, int]] = set()
        self._rank_zero: dict[Member, int] = {}  # nodes that run the worker of rank 0, not frozen -> round
        self._frozen: set[Member] = set()
        self._heartbeats = HeartbeatTimes()

    def add(self, member: Member) -> None:
        """Watch another node."""
        self._members[member.name] = member
        self._longest_lease = max(self._longest_lease, member.settings.timeouts.lease_timeout)

    def fail(self, law: Law, problem: str) -> NoReturn:
        """Raise SimulationError, since ``law`` was broken."""
        self._timeline.remark(f"LAW BROKEN: {law.value}: {problem}")
        raise SimulationError(law, problem, self._timeline.seed, list(self._timeline.transcript))

    def rounds_running(self) -> dict[int, int]:
        """Return on how many nodes the workers of each round run."""
        return {number: len(members) for number, members in self._running.items()}

    def done_and_gone(self, number: int) -> int:
        """Return how many members of a round have succeeded in it and are not up any more."""
        names = [name for name, _ in self.rounds[number].assignments.values() if (name, number) in self._successes]
        return sum(not self._members[name].is_up for name in names)

    # --- what machines do ---------------------------------------------------------------------------------------------

    def steps(self, node: Member, before: State, event: Input, result: Step) -> None:
        """The rendezvous machine of ``node`` takes a step."""
        if not _machine.is_listed(before.phase, event, result.state.phase):
            change = f"from {before.phase.value} to {result.state.phase.value}"
            self.fail(Law.TABLE, f"{type(event).__name__} leads {node.name} {change}, which is not listed")

    # --- what is written ----------------------------------------------------------------------------------------------

    def writes(self, node: Member, key: str, value: bytes) -> None:
        """``node`` writes ``key``."""
        number, _, name = key.partition("/")
        if name.startswith("heartbeat/"):
            self._heartbeats.note(node.name, self._timeline.now, self._longest_lease / 2)
        if name not in ("sealed", "ended"):
            return
        if key in self._network.values:
            self.fail(Law.WRITTEN_ONCE, f"{node.name} writes {key} again")
        if name == "sealed":
            self._sealed(node, int(number), key, value)
        else:
            self._ended(node, int(number), key, value)

    def _sealed(self, node: Member, number: int, key: str, value: bytes) -> None:
        data = decode_object(key, value, "sealed")
        if data.get("refusal"):
            self._timeline.remark(f"round {number} is refused: {data['refusal']}")
            return
        self._timeline.remark(f"round {number} is sealed by {node.name}: {data['nodes']} node(s)")
        before = self.rounds.get(number - 1)
        if self.is_over or (number > 0 and (before is None or before.end is None)):
            self.fail(
                Law.ROUNDS_IN_ORDER,
                f"round {number} is sealed, but round {number - 1} has not ended for it",
            )
        low, high = node.settings.min_nodes, node.settings.max_nodes
        if not low <= data["nodes"] <= high:
            self.fail(Law.SIZE_IN_BOUNDS, f"round {number} has {data['nodes']} nodes, not {low} to {high}")
        self.rounds[number] = _Round(number, data["sealer"], data["nodes"], data["world_size"])
        if before is not None:
            self._check_majority(node, number, data["sealer"], before)
        if data["nodes"] < high and self._is_settled(node):
            self._check_left_out(node, number, data["sealer"])

    def _check_majority(self, sealer: Member, number: int, ticket: int, before: _Round) -> None:
        if not sealer.settings.majority:
            return
        had, has = (set(self._seats(*round).values()) for round in ((before.number, before.sealer), (number, ticket)))
        if 2 * len(had & has) <= len(had):
            self.fail(Law.MAJORITY, f"round {number} of {sorted(has)} follows one of {sorted(had)}")

    def _seats(self, number: int, sealer: int) -> dict[int, str]:
        """Return the names of the nodes that a sealer has given a place in a round, by group rank."""
        values = self._network.values
        keys = [Key.assignment(number, sealer, ticket + 1) for ticket in range(int(values[Key.tickets(number)]))]
        assignments = [decode_assignment(key, values[key]) for key in keys if key in values]
        return {assignment.group_rank: assignment.node_id for assignment in assignments}

    def _is_settled(self, node: Member) -> bool:
        return node.healthy_since() < self._timeline.now - 2 * node.settings.timeouts.lease_timeout

    def _check_left_out(self, sealer: Member, number: int, ticket: int) -> None:
        settled = self._timeline.now - 2 * sealer.settings.timeouts.lease_timeout
        values = self._network.values
        for node in self._members.values():
            state = node.state
            waits = state.round_number == number and state.ticket > 0 and node.in_line_since() < settled
            if not waits or not node.is_up or node.finished is not None or node.healthy_since() > settled:
                continue
            if Key.assignment(number, ticket, state.ticket) not in values:
                self.fail(Law.NO_NODE_LEFT_OUT, f"round {number} leaves out {node.name}, which was in line in time")

    def _ended(self, node: Member, number: int, key: str, value: bytes) -> None:
        end = decode_end(key, value)
        self._timeline.remark(
            f"round {number} is ended by {node.name}: {end.cause.value}, {end.verdict.value}: {end.reason}"
        )
        this = self.rounds.get(number)
        if this is None:
            self.fail(Law.ROUNDS_IN_ORDER, f"{node.name} ends round {number}, which is not sealed")
        this.end, this.ended_at = end, self._timeline.now
        self.is_over = self.is_over or end.verdict.is_terminal
        self._check_success(this, end)
        self._check_losses(node, this, end)
        for member in self._running.get(number, ()):
            self._check_notice_later(member, number)

    def _check_success(self, this: _Round, end: RoundEnd) -> None:
        if end.verdict is not Verdict.SUCCEEDED:
            return
        done = sum((name, this.number) in self._successes for name, _ in this.assignments.values())
        if done != this.group_size:
            self.fail(
                Law.SUCCESS_IS_SUCCESS,
                f"only {done} of {this.group_size} members of round {this.number} are done",
            )

    def _check_losses(self, writer: Member, this: _Round, end: RoundEnd) -> None:
        if end.cause is not Cause.NODE_LOST:
            return
        now, limit = self._timeline.now, 2 * self._longest_lease
        seats = self._seats(this.number, this.sealer)  # of nodes, too, that do not know it yet
        for rank in end.lost_ranks:
            node = self._members[seats[rank]]
            steady_since = self._heartbeats.steady_since(node.name, now, self._longest_lease / 2)
            is_here = node.is_up and node.state.phase not in FINAL and writer.healthy_since() < now - limit
            if is_here and steady_since < now - limit:
                self.fail(Law.NO_FALSE_LOSS, f"the heartbeats of {node.name} have arrived, but {end.reason}")
            if not node.is_up or node.finished is not None or node.state.phase is Phase.LEFT:
                continue
            if node.troubled_alone_until < self.all_paused_at - limit:
                self.fail(
                    Law.NO_FALSE_LOSS,
                    f"{node.name} paused only when all did, but is declared lost: {end.reason}",
                )
            if node.healthy_since() < now - limit and node.agent.signal_number is None:
                self.fail(Law.NO_FALSE_LOSS, f"{node.name} is declared lost: {end.reason}")

    # --- what nodes do ------------------------------------------------------------------------------------------------

    def joins(self, node: Member, assignment: Assignment) -> None:
        """``node`` has read its assignment."""
        this = self.rounds.get(assignment.round_number)
        if this is None:
            self.fail(
                Law.WORKERS_IN_SEALED_ROUNDS,
                f"{node.name} has an assignment of round {assignment.round_number}, not sealed",
            )
        first = this.first
        if first is None:
            this.first = first = assignment
        for name in ("group_world_size", "world_size", "master_addr", "master_port", "restart_count"):
            if getattr(first, name) != getattr(assignment, name):
                self.fail(Law.ONE_WORLD, f"round {assignment.round_number} has two worlds: {first} and {assignment}")
        if (assignment.group_world_size, assignment.world_size) != (this.group_size, this.world_size):
            self.fail(Law.ONE_WORLD, f"{assignment} is not of the world that was sealed")
        rank = assignment.group_rank
        if rank in this.assignments or not 0 <= rank < this.group_size:
            self.fail(
                Law.DENSE_RANKS,
                f"group rank {rank} of round {assignment.round_number} is given twice, also to {node.name}",
            )
        this.assignments[rank] = node.name, assignment
        self._check_neighbours(this, assignment)
        self._check_budget(node, this, assignment)

    def _check_neighbours(self, this: _Round, assignment: Assignment) -> None:
        """Global ranks continue those of the neighbours, so that all are dense once all members are here."""
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
            self.fail(Law.DENSE_RANKS, f"the global ranks of group rank {rank} leave a gap or overlap: {assignment}")

    def _check_budget(self, node: Member, this: _Round, assignment: Assignment) -> None:
        before = self.rounds.get(this.number - 1)
        used = before.first.restart_count if before is not None and before.first is not None else None
        if assignment.restart_count > node.agent.max_restarts:
            self.fail(
                Law.BUDGET,
                f"round {this.number} is restart {assignment.restart_count} of {node.agent.max_restarts}",
            )
        if used is not None and before is not None and before.end is not None:
            most = used + (before.end.verdict is Verdict.RESTART)
            if not used <= assignment.restart_count <= most:
                self.fail(
                    Law.BUDGET,
                    f"{before.end.verdict.value} made restart count {used} into {assignment.restart_count}",
                )

    def starts(self, node: Member, assignment: Assignment) -> None:
        """The agent of ``node`` starts workers."""
        number = assignment.round_number
        self._timeline.note(
            node.name,
            "workers",
            f"start: round {number}, group rank {assignment.group_rank} of {assignment.group_world_size}",
        )
        if node.running is not None:
            self.fail(Law.STOPPED_BEFORE_STARTED, f"{node.name} starts workers beside those of round {node.running}")
        if Key.sealed(number) not in self._network.values or assignment.node_id != node.name:
            self.fail(
                Law.WORKERS_IN_SEALED_ROUNDS,
                f"{node.name} starts workers of round {number}, which is not sealed",
            )
        for earlier, members in self._running.items():
            if earlier < number:
                for other, since in members.items():
                    self._check_overlap(node, number, other, earlier, since)
        self._running.setdefault(number, {})[node] = self._timeline.now
        self._frozen.discard(node)
        self._runs_rank_zero(node)
        this = self.rounds[number]
        if this.end is not None:
            self._check_notice_later(node, number)

    def _check_overlap(self, node: Member, number: int, other: Member, earlier: int, since: float) -> None:
        end = self.rounds[earlier].end
        if end is not None and other.name in end.lost and other.agent.phase is agent.Phase.STOPPING:
            return  # it has reported that it leaves, and stops its workers; no node waits for those
        excuse = since - self._longest_lease - self._network.notice_seconds
        if other.is_up and not other.is_troubled and other.troubled_until < excuse:
            self.fail(
                Law.ONE_RUNNING_WORLD,
                f"{node.name} starts workers of round {number} while {other.name}, always awake and connected, "
                f"still runs those of round {earlier}",
            )

    def keeps(self, node: Member, kept: Collection[int], waiting: Collection[int]) -> None:
        """The agent of ``node`` tells live workers the next assignment; as far as it knows, ``waiting`` wait for it."""
        if set(kept) != set(waiting):
            self.fail(
                Law.NO_LATE_STEP,
                f"{node.name} tells its workers {sorted(kept)} the next assignment, but {sorted(waiting)} wait for it",
            )

    def takes_step(self, node: Member, assignment: Assignment, local_rank: int) -> None:
        """A live worker of ``node`` takes a step in the world of ``assignment``."""
        current = node.agent.assignment
        if current is None or current.round_number != assignment.round_number:
            self.fail(
                Law.NO_LATE_STEP,
                f"local rank {local_rank} of {node.name} takes a step in round {assignment.round_number}, but its "
                f"agent is {node.agent.phase.value} in another one",
            )

    def freezes(self, node: Member) -> None:
        """The workers of ``node`` stand still."""
        self._timeline.note(node.name, "workers", "are frozen")
        self._timeline.count("workers frozen")
        self._frozen.add(node)
        self._rank_zero.pop(node, None)

    def thaws(self, node: Member) -> None:
        """The workers of ``node`` go on."""
        self._timeline.note(node.name, "workers", "go on")
        self._timeline.count("workers thawed")
        self._frozen.discard(node)
        self._runs_rank_zero(node)

    def _runs_rank_zero(self, node: Member) -> None:
        """From now on the workers of ``node`` run, and may do what only one rank 0 may do."""
        assignment = node.agent.assignment
        if assignment is None or assignment.first_rank != 0 or node.settings.when_cut_off is WhenCutOff.RUN:
            return
        number = assignment.round_number
        for other, earlier in self._rank_zero.items():
            if other is not node and not self._may_run_beside(node, other, earlier):
                self.fail(
                    Law.ONE_RANK_ZERO,
                    f"{node.name} runs rank 0 of round {number} while {other.name} runs rank 0 of round {earlier}",
                )
        self._rank_zero[node] = number

    def _may_run_beside(self, node: Member, other: Member, earlier: int) -> bool:
        end = self.rounds[earlier].end
        has_left = end is not None and other.name in end.lost
        awake_since = self._timeline.now - self._network.notice_seconds
        return has_left or not other.is_up or max(node.paused_until, other.paused_until) > awake_since

    def stops(self, node: Member) -> None:
        """No worker of ``node`` is in a world any more."""
        self._rank_zero.pop(node, None)
        self._frozen.discard(node)
        for number, members in list(self._running.items()):
            members.pop(node, None)
            if not members:
                del self._running[number]

    def succeeds(self, node: Member, assignment: Assignment) -> None:
        """All workers of ``node`` in this round have succeeded."""
        self._successes.add((node.name, assignment.round_number))

    def learns_end(self, node: Member, end: RoundEnd) -> None:
        """``node`` learns how a round ended."""
        this = self.rounds.get(end.round_number)
        if this is None or this.end != end:
            self.fail(
                Law.ONE_REASON,
                f"{node.name} learns an end of round {end.round_number} that no node recorded: {end}",
            )

    def finishes(self, node: Member) -> None:
        """The agent of ``node`` has finished."""
        finish, state = node.finished, node.agent
        assert finish is not None
        self._timeline.note(node.name, "agent", f"{finish.outcome.value}: {finish.reason}")
        if node.running is not None or node.has_waiting:
            self.fail(Law.STOPPED_BEFORE_STARTED, f"{node.name} finishes while its workers run")
        if finish.outcome is agent.Outcome.SUCCEEDED and not isinstance(
            finish.why, (agent.WorkersSucceeded, agent.RendezvousIsLost)
        ):
            recorded = any(r.end is not None and r.end.verdict is Verdict.SUCCEEDED for r in self.rounds.values())
            if not recorded:
                self.fail(Law.OUTCOME_IS_RECORDED, f"{node.name} succeeds in a job that has not")
        limit = state.settings.close_timeout + self._network.notice_seconds
        untroubled = state.trouble is None and node.healthy_since() < self._timeline.now - limit
        if finish.outcome is agent.Outcome.FAILED and untroubled and state.end is not None:
            this = self.rounds.get(state.end.round_number)
            if this is None or this.end != state.end:
                self.fail(
                    Law.OUTCOME_IS_RECORDED,
                    f"{node.name} fails as {state.end.reason!r}, which is not recorded",
                )

    # --- in time ------------------------------------------------------------------------------------------------------

    def _check_notice_later(self, node: Member, number: int) -> None:
        self._timeline.after(self._network.notice_seconds, lambda: self._check_notice(node, number))

    def _check_notice(self, node: Member, number: int) -> None:
        if node.running is None or node.running.round_number != number or not node.is_up:
            return
        if node.agent.phase is agent.Phase.STOPPING:
            return
        since = node.healthy_since()
        wait = since + self._network.notice_seconds - self._timeline.now
        if wait > 0:
            self._timeline.after(min(wait, 5.0) + 0.01, lambda: self._check_notice(node, number))
            return
        self.fail(
            Law.ENDS_ARE_NOTICED,
            f"{node.name} still runs round {number}, which has ended, and has not noticed",
        )
