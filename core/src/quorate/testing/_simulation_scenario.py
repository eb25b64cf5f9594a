"""Random scenarios: made from a seed, played with faults, then without, and shrunk when they fail.

A scenario is plain data, so that it can be made shorter piece by piece while it still breaks the same law.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import final

from attrs import asdict, evolve, field, frozen

from ..agent import _protocol as agent
from ..cut_off import WhenCutOff
from ..rendezvous._protocol import Phase, Settings
from ..timeouts import Timeouts
from ._simulation import Faults, Law, Plan, SimulatedNode, SimulationError, WorkerOutcome, World
from ._simulation_node import RELEASE_SECONDS

_FAULTY_SECONDS = 15.0
_GRACE_SECONDS = 4.0
_LONGEST_PAUSE = 2.0  # that the default policy asks for, as the simulation answers it
_OPERATION_SECONDS = 10.0
#: How long a minority waits for the others before it gives up.
_MINORITY_SECONDS = 60.0
#: Two of five seeds have nodes that freeze or kill their workers while they are cut off, by ``seed % 5``.
_CUT_OFF = {1: WhenCutOff.FREEZE, 2: WhenCutOff.STOP}
#: What a busy worker does; a failure is twice as likely as the others.
_OUTCOMES = (
    WorkerOutcome.FAIL,
    WorkerOutcome.FAIL,
    WorkerOutcome.HANG,
    WorkerOutcome.UNSTARTABLE,
    WorkerOutcome.SUCCEED,
)


@final
class ActionKind(str, Enum):
    """What a scenario may do to a world."""

    CRASH = "crash"
    PAUSE = "pause"
    PAUSE_ALL = "pause all"
    CUT = "cut"
    CUT_RANK_ZERO = "cut off rank 0"
    DEAFEN = "deafen"
    OUTAGE = "outage"
    DROP_CONNECTIONS = "drop connections"
    FAIL = "fail"
    HANG = "hang"
    SUCCEED = "succeed"
    SIGNAL = "signal"
    MAKE_UNHEALTHY = "make unhealthy"
    JOIN = "join"


#: What any scenario may hold; ``_partitions`` and ``_with_late_news`` add the others.
_ANY_KIND = [kind for kind in ActionKind if kind not in (ActionKind.CUT_RANK_ZERO, ActionKind.DEAFEN)]


@final
@frozen
class Action:
    """Something that happens at ``at`` seconds to the node with this ``index`` (among those that are up then)."""

    at: float
    kind: ActionKind
    index: int = 0
    seconds: float = 1.0

    def __str__(self) -> str:
        return f"{self.at:6.2f} s: {self.kind.value} node {self.index} ({self.seconds:.2f} s)"


@final
@frozen
class Scenario:
    """All that determines a run, together with the seed of the world's own randomness."""

    seed: int
    size: int
    min_nodes: int
    max_nodes: int
    local_world_size: int = 1
    max_restarts: int = 3
    faults: Faults = field(factory=Faults)
    connects_workers: bool = False
    interrupt_seconds: float = 0.0
    drift: float = 0.0  # clock rates are between 1 - drift and 1 + drift
    stop_seconds: float = 0.05  # the longest time that workers take to stop
    busy: float = 0.0  # the chance that a worker does something other than run
    live: float = 0.0  # the chance that a worker is a live one
    when_cut_off: WhenCutOff = WhenCutOff.RUN
    majority: bool = False
    actions: tuple[Action, ...] = ()

    def __str__(self) -> str:
        changed = [f"{name}={value!r}" for name, value in differences(self.faults, Faults())]
        lines = [
            f"{self.size} node(s) of {self.local_world_size} worker(s)",
            f"{self.min_nodes} to {self.max_nodes} nodes in a round, at most {self.max_restarts} restarts",
            f"network: {', '.join(changed) or 'without faults'}",
            f"clocks drift by up to {self.drift:.0%}; an interrupt takes up to {self.interrupt_seconds:g} s",
            f"workers: {self.busy:.0%} end by themselves, stop within {self.stop_seconds:g} s, "
            f"{'break' if self.connects_workers else 'do not break'} with one another; {self.live:.0%} are live; "
            f"when cut off: {self.when_cut_off}; {'a majority' if self.majority else 'any number'} re-forms",
        ]
        return "\n".join([*lines, *map(str, self.actions)])


def differences(one: Faults, other: Faults) -> Iterator[tuple[str, object]]:
    ours, theirs = asdict(one, recurse=False), asdict(other, recurse=False)
    yield from ((name, value) for name, value in ours.items() if value != theirs[name])


@final
@frozen
class Result:
    """What one run came to."""

    virtual_seconds: float
    node_seconds: float
    rounds: int
    counts: Counter[str]
    transcript: list[str]


def make_scenario(seed: int) -> Scenario:
    """Return the scenario of a seed.  Many have few faults: a world in which everything fails at once shows little."""
    choose = random.Random(f"scenario {seed}")
    size = choose.choice([1, 2, 2, 3, 3, 4, 5])
    max_nodes = choose.choice([size, size, max(1, size - 1), size + 1])
    min_nodes = choose.randint(1, min(size, max_nodes))
    lossy = choose.random() < 0.4
    faults = Faults(
        latency=choose.choice([(0.0002, 0.002), (0.0002, 0.002), (0.001, 0.1)]),
        request_lost=choose.choice([0.0, 0.02, 0.1]) if lossy else 0.0,
        answer_lost=choose.choice([0.0, 0.02, 0.1]) if lossy else 0.0,
        failure_after=choose.choice([0.1, 1.0, 2.0]),
        wait_broken=choose.choice([0.0, 0.2]) if lossy else 0.0,
        wake_delay=choose.choice([(0.0, 0.0), (0.0, 0.0), (0.0, 1.0)]),
        wake_twice=choose.choice([0.0, 0.0, 0.2]),
        thread_delay=choose.choice([0.0, 0.0, 0.02]),
    )
    kinds = choose.sample(_ANY_KIND, k=choose.randint(1, 5))
    actions = [
        Action(
            round(choose.uniform(0.0, _FAULTY_SECONDS - 1.0), 3),
            choose.choice(kinds),
            choose.randrange(6),
            round(choose.choice([choose.uniform(0.1, 2.0), choose.uniform(2.0, 14.0)]), 3),
        )
        for _ in range(choose.randint(0, 7))
    ]
    scenario = Scenario(
        seed,
        size,
        min_nodes,
        max_nodes,
        choose.choice([1, 1, 2, 4]),
        choose.choice([0, 1, 3, 100]),
        faults,
        choose.random() < 0.3,
        choose.choice([0.0, 0.0, 1.0]),
        choose.choice([0.0, 0.0, 0.02]),
        choose.choice([0.05, 0.05, 2.0, 8.0]),
        choose.choice([0.0, 0.0, 0.1, 0.3]),
        # One of seven seeds has live workers: those that once showed a defect are not among them and still show it.
        live=choose.choice([0.5, 1.0]) if seed % 7 == 4 else 0.0,
        majority=seed % 11 == 7,
        actions=tuple(sorted(actions, key=lambda action: action.at)),
    )
    if seed % 13 == 12:
        return _with_late_news(scenario)
    when_cut_off = _CUT_OFF.get(seed % 5)
    return scenario if when_cut_off is None else _with_partitions(scenario, when_cut_off)


def _with_partitions(scenario: Scenario, when_cut_off: WhenCutOff) -> Scenario:
    """Return the scenario with partitions, in most of them nothing else, and rounds that may do without some nodes."""
    choose = random.Random(f"partitions {scenario.seed}")
    actions = [*scenario.actions[: choose.choice([0, 0, 7])], *_partitions(choose)]
    return evolve(
        scenario,
        when_cut_off=when_cut_off,
        min_nodes=choose.choice([1, scenario.min_nodes]),
        busy=choose.choice([0.0, scenario.busy]),
        stop_seconds=choose.choice([8.0, scenario.stop_seconds]),
        actions=tuple(sorted(actions, key=lambda action: action.at)),
    )


def _with_late_news(scenario: Scenario) -> Scenario:
    """Return the scenario with wake-ups that come late, and nodes that send heartbeats but get no answers."""
    choose = random.Random(f"late news {scenario.seed}")
    deaf = [
        Action(round(choose.uniform(0.5, 4.0), 3), ActionKind.DEAFEN, choose.randrange(6), choose.uniform(6.5, 10.0))
        for _ in range(choose.choice([0, 1, 1, 2]))
    ]
    actions = [*scenario.actions[: choose.choice([0, 0, 7])], *deaf]
    return evolve(
        scenario,
        faults=evolve(scenario.faults, failure_after=0.1, wait_stalled=choose.choice([0.3, 1.0])),
        busy=choose.choice([0.0, scenario.busy]),
        actions=tuple(sorted(actions, key=lambda action: action.at)),
    )


def _partitions(choose: random.Random) -> list[Action]:
    """Return partitions, most of them of rank 0: about as long as a lease, close together, or while workers stop."""
    actions = []
    at = choose.uniform(3.0, 6.0)
    for _ in range(choose.randint(1, 3)):
        kind = choose.choice([ActionKind.CUT, ActionKind.CUT_RANK_ZERO, ActionKind.CUT_RANK_ZERO])
        seconds = choose.choice([choose.uniform(0.1, 2.0), choose.uniform(2.5, 3.5), choose.uniform(3.0, 8.0)])
        actions.append(Action(round(at, 3), kind, choose.randrange(6), round(seconds, 3)))
        if choose.random() < 0.3:
            actions.append(Action(round(at - choose.uniform(0.0, 0.5), 3), ActionKind.FAIL, choose.randrange(6)))
        at += choose.choice([seconds + choose.uniform(0.0, 0.3), seconds + choose.uniform(2.0, 4.0)])
    return [action for action in actions if action.at < _FAULTY_SECONDS - 1.0]


def _bound_seconds(world: World, settings: Settings) -> float:
    """Return within how many virtual seconds a world without faults converges, whatever was before.

    The longest sequence for one node is: a call without an answer and its retry; the agent's ``close_timeout``; the
    lease of each dead node in turn, as a member or in line (two leases where a standby watches); the policy's pause and
    the last call; workers that use their whole grace.  All of it twice, for nodes that the first round afterwards left
    out.
    """
    dead, timeouts = sum(not node.is_up for node in world.nodes), settings.timeouts
    leases = 2 * timeouts.lease_timeout * (dead + 2)
    waits = timeouts.join_timeout if settings.majority else 0.0
    return waits + 2 * (
        _OPERATION_SECONDS
        + timeouts.close_timeout
        + leases
        + timeouts.last_call_timeout
        + _LONGEST_PAUSE
        + _GRACE_SECONDS
        + RELEASE_SECONDS
    )


# --- playing ----------------------------------------------------------------------------------------------------------


def play(scenario: Scenario) -> Result:
    """Play a scenario to its end.

    Raises:
        SimulationError: a law was broken.
    """
    join_timeout = _MINORITY_SECONDS if scenario.majority else 1e6
    timeouts = Timeouts(join_timeout=join_timeout, last_call_timeout=1.0, store_outage_timeout=12.0)
    settings = Settings(
        scenario.min_nodes,
        scenario.max_nodes,
        timeouts,
        when_cut_off=scenario.when_cut_off,
        majority=scenario.majority,
    )
    world = World(scenario.seed, scenario.faults)
    try:
        return _play(world, scenario, settings)
    except SimulationError:
        raise
    except Exception as error:
        world.remark(f"LAW BROKEN: {Law.NO_CRASH.value}: {type(error).__name__}: {error}")
        raise SimulationError(Law.NO_CRASH, repr(error), world.seed, world.transcript) from error


def _play(world: World, scenario: Scenario, settings: Settings) -> Result:
    world.interrupt_seconds, world.connects_workers = scenario.interrupt_seconds, scenario.connects_workers
    world.plan = lambda node, assignment, local_rank: _plan(world, scenario)
    run = _Run(world, scenario, settings)
    for _ in range(scenario.size):
        run.add(world.random.uniform(0.0, 2.0))
    for action in scenario.actions:
        world.at(action.at, partial(run.act, action))
    world.run(_FAULTY_SECONDS)
    world.remark("no more faults from here on")
    world.end_faults()
    world.run(world.now + 15.0)  # pauses and cuts that have begun last for at most so long
    run.converge()
    run.complete()
    up = sum(node.ended_at - node.begun_at for node in world.nodes)
    return Result(world.now, up, len(world.judge.rounds), world.counts, world.transcript)


def _plan(world: World, scenario: Scenario) -> Plan:
    choose = world.random
    outcome, after = WorkerOutcome.RUN, 0.0
    if choose.random() < scenario.busy:
        outcome = choose.choice(_OUTCOMES)
        after = choose.uniform(0.001, 5.0)
        world.count(f"worker planned: {outcome.value}")
    plan = Plan(outcome, after, choose.uniform(0.001, scenario.stop_seconds))
    if scenario.live == 0.0 or choose.random() >= scenario.live:
        return plan
    leave_after = choose.choice([choose.uniform(0.001, 0.2), choose.uniform(0.001, 2 * RELEASE_SECONDS)])
    return evolve(plan, leave_after=leave_after, end_after=choose.choice([1e9, 1e9, choose.uniform(0.001, 3.0)]))


@final
class _Run:
    """One scenario being played."""

    def __init__(self, world: World, scenario: Scenario, settings: Settings) -> None:
        self.world, self.scenario, self.settings = world, scenario, settings

    def add(self, joins_at: float) -> SimulatedNode:
        world, scenario = self.world, self.scenario
        drift = scenario.drift
        return world.add_node(
            f"n{len(world.nodes)}",
            self.settings,
            joins_at=joins_at,
            local_world_size=scenario.local_world_size,
            max_restarts=scenario.max_restarts,
            clock=(world.random.uniform(0.0, 1e5), 1.0 + world.random.uniform(-drift, drift)),
            grace_seconds=_GRACE_SECONDS,
        )

    def act(self, action: Action) -> None:
        """Do what the scenario says."""
        nodes = [node for node in self.world.nodes if node.is_up]
        if action.kind is ActionKind.JOIN:
            self.world.count("node joins")
            self.add(self.world.now)
        elif nodes or action.kind is ActionKind.OUTAGE:
            _ACTIONS[action.kind](self.world, nodes, action)

    def staying(self) -> list[SimulatedNode]:
        """Return the nodes that are in the job and are going to stay."""
        return [n for n in self.world.nodes if n.is_up and n.finished is None and n.gave_up is None]

    def converge(self) -> None:
        """All live nodes come to be in one round or in line for the next, or the job is over."""
        world = self.world
        if not world.judge.is_over and not world.network.is_lost:
            for _ in range(self.scenario.min_nodes - len(self.staying())):
                self.add(world.now)
        bound = _bound_seconds(world, self.settings)
        if not world.run(world.now + bound, self._has_converged):
            states = ", ".join(f"{n.name} {n.agent.phase.value}/{n.state.phase.value}" for n in self.staying())
            world.judge.fail(Law.CONVERGENCE, f"after {bound:g} s without faults: {states}")

    def _has_converged(self) -> bool:
        here = self.staying()
        if self.scenario.majority and not here:
            return True  # those that were left were too few, and have given up
        if self.world.judge.is_over or self.world.network.is_lost:
            return not here
        assignments, standbys = 0, 0
        members: dict[int, int] = {}
        for node in here:
            phase = node.state.phase
            if phase is Phase.RUNNING and node.agent.phase in (agent.Phase.RUNNING, agent.Phase.BARRIER):
                assignment = node.state.assignment
                assert assignment is not None
                members[assignment.round_number] = assignment.group_world_size
                assignments += 1
            elif phase is Phase.STANDBY:
                standbys += 1
            else:
                return False
        if len(members) != 1:
            return False
        ((number, size),) = members.items()
        # A member that died after its workers had succeeded is not missing: its part is done.
        whole = assignments + self.world.judge.done_and_gone(number) == size
        return whole and (size == self.scenario.max_nodes or not standbys)

    def complete(self) -> None:
        """All workers succeed from now on, and so does the job."""
        world = self.world
        world.plan = lambda node, assignment, local_rank: Plan(WorkerOutcome.SUCCEED, 0.5)
        for node in self.staying():
            world.succeed(node)
        bound = _bound_seconds(world, self.settings)
        if not world.run(world.now + bound, lambda: not any(node.is_up for node in world.nodes)):
            states = ", ".join(f"{n.name} {n.agent.phase.value}/{n.state.phase.value}" for n in world.nodes if n.is_up)
            world.judge.fail(Law.COMPLETION, f"after {bound:g} s in which all workers succeeded: {states}")


def _one(act: Callable[[World, SimulatedNode, Action], None]) -> Callable[[World, list[SimulatedNode], Action], None]:
    return lambda world, nodes, action: act(world, nodes[action.index % len(nodes)], action)


def _cut_some(world: World, nodes: list[SimulatedNode], action: Action) -> None:
    chosen = [node for number, node in enumerate(nodes) if (action.index + 1) >> (number % 3) & 1]
    world.cut(chosen or nodes[:1], action.seconds)


def _cut_rank_zero(world: World, nodes: list[SimulatedNode], action: Action) -> None:
    chosen = [node for node in nodes if node.running is not None and node.running.first_rank == 0]
    world.cut(chosen or nodes[:1], action.seconds)


#: How each action is done; ``JOIN`` is done by the run itself.
_ACTIONS: dict[ActionKind, Callable[[World, list[SimulatedNode], Action], None]] = {
    ActionKind.CRASH: _one(lambda world, node, action: world.crash(node)),
    ActionKind.PAUSE: _one(lambda world, node, action: world.pause(node, action.seconds)),
    ActionKind.PAUSE_ALL: lambda world, nodes, action: world.pause_all(action.seconds),
    ActionKind.CUT: _cut_some,
    ActionKind.CUT_RANK_ZERO: _cut_rank_zero,
    ActionKind.DEAFEN: _one(lambda world, node, action: world.deafen(node, action.seconds)),
    ActionKind.OUTAGE: lambda world, nodes, action: world.outage(action.seconds),
    ActionKind.DROP_CONNECTIONS: _one(lambda world, node, action: world.drop_connections(node)),
    ActionKind.FAIL: _one(lambda world, node, action: world.fail_worker(node)),
    ActionKind.HANG: _one(lambda world, node, action: world.hang_worker(node)),
    ActionKind.SUCCEED: _one(lambda world, node, action: world.succeed(node)),
    ActionKind.SIGNAL: _one(lambda world, node, action: world.signal(node)),
    ActionKind.MAKE_UNHEALTHY: _one(lambda world, node, action: world.make_unhealthy(node)),
}
