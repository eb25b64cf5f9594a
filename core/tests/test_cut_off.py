"""What becomes of a node that is cut off from the store, and of a minority: scripts in a simulated world.

What does not live here: random partitions (``test_simulation_seeds``), real machines (``tests/test_lost_machines``).
"""

from __future__ import annotations

import signal

import pytest
from attrs import evolve
from core.tests.idle_context import IdleContext

from quorate.agent import _protocol as agent, _state as agent_state
from quorate.agent._guarded_context import GuardedContext
from quorate.agent._machine import step
from quorate.agent._processes import Processes
from quorate.cut_off import WhenCutOff, parse_when_cut_off
from quorate.errors import FailureKind, PluginError, UsageError
from quorate.records import AgentPhase, Assignment, Cause, NodeRecord, RoundEnd, Verdict, WorkerExited
from quorate.rendezvous._host_end import end_with_store, why_no_round
from quorate.rendezvous._memory import InMemoryStore
from quorate.rendezvous._protocol import End, Key, Phase, RendezvousFailed, Settings
from quorate.rendezvous._wire import decode_end
from quorate.testing import Faults, SimulatedNode, World
from quorate.testing._simulation import Plan
from quorate.timeouts import Timeouts

#: A worker that uses all its grace, and more.
SLOW = Plan(stop_after=6.0)
TIMEOUTS = Timeouts(join_timeout=60.0, last_call_timeout=1.0)


def world_of(
    when_cut_off: str = "run",
    size: int = 3,
    majority: bool = False,
    max_nodes: int | None = None,
    latency: tuple[float, float] = Faults().latency,
) -> tuple[World, list[SimulatedNode]]:
    """Return a world whose nodes run, by group rank."""
    settings = Settings(1, max_nodes or size, TIMEOUTS, when_cut_off=WhenCutOff(when_cut_off), majority=majority)
    world = World(0, Faults(failure_after=0.05, latency=latency))
    nodes = [world.add_node(f"n{number}", settings) for number in range(size)]
    assert world.run(20.0, lambda: sum(node.running is not None for node in nodes) == min(size, settings.max_nodes))
    world.run(world.now + 1.0)
    return world, sorted(nodes, key=lambda node: node.running.group_rank if node.running else size)


def end_of(world: World, number: int) -> RoundEnd:
    key = Key.ended(number)
    return decode_end(key, world.network.values[key])


def is_frozen(node: SimulatedNode) -> bool:
    return node.agent.phase is AgentPhase.FROZEN and node.workers is not None and node.workers.is_frozen


def test_workers_are_frozen_before_any_other_node_goes_on_and_killed_when_it_has() -> None:
    world, nodes = world_of("freeze")
    world.cut(nodes[:1], 8.0)
    assert world.run(world.now + 3.0, lambda: is_frozen(nodes[0])), world.explain("not frozen within the lease")
    assert "ended" not in str([key for key in world.network.values if key.endswith("/ended")])
    assert world.run(world.now + 30.0, lambda: all(n.running and n.running.round_number == 2 for n in nodes))
    assert nodes[0].ends[0].cause is Cause.NODE_LOST
    assert world.counts["workers thawed"] == 0


@pytest.mark.parametrize(("seconds", "frozen"), [(2.0, 0), (2.6, 1)])
def test_a_short_partition_changes_nothing_and_a_longer_one_freezes_for_a_moment(seconds: float, frozen: int) -> None:
    world, nodes = world_of("freeze")
    world.cut(nodes[:1], seconds)
    world.run(world.now + 20.0)
    assert [node.running.round_number for node in nodes if node.running] == [0, 0, 0]
    assert not is_frozen(nodes[0])
    assert (world.counts["workers frozen"], world.counts["workers thawed"]) == (frozen, frozen)


def test_when_the_store_is_away_for_all_all_stand_still_and_go_on_in_their_round() -> None:
    world, nodes = world_of("freeze")
    world.outage(20.0)
    world.run(world.now + 10.0)
    assert all(map(is_frozen, nodes))
    world.run(world.now + 20.0)
    assert [node.running.round_number for node in nodes if node.running] == [0, 0, 0]
    assert not any(map(is_frozen, nodes))


def test_a_node_that_stops_its_workers_joins_again_at_no_cost() -> None:
    world, nodes = world_of("stop")
    world.outage(6.0)
    assert world.run(world.now + 3.0, lambda: not any(node.running for node in nodes))
    assert world.run(world.now + 30.0, lambda: all(n.running and n.running.round_number == 1 for n in nodes))
    assert (end_of(world, 0).cause, end_of(world, 0).verdict) == (Cause.NODE_LOST, Verdict.RESCALE)
    assert "was cut off and has killed its workers" in end_of(world, 0).reason
    assert {node.running.restart_count for node in nodes if node.running} == {0}


def test_the_only_node_of_a_round_minds_the_standby_that_would_take_its_place() -> None:
    world, nodes = world_of("freeze", size=2, max_nodes=1)
    world.cut(nodes[:1], 20.0)
    assert world.run(world.now + 10.0, lambda: nodes[1].running is not None)
    assert is_frozen(nodes[0])


def test_workers_go_on_where_nothing_else_is_asked_for() -> None:
    world, nodes = world_of()
    world.outage(20.0)
    world.run(world.now + 15.0)
    assert [node.agent.phase for node in nodes] == [AgentPhase.RUNNING] * 3


def test_a_grace_ends_when_the_others_no_longer_wait_for_it() -> None:
    world, nodes = world_of("freeze")
    world.plan = lambda node, assignment, local_rank: SLOW
    world.fail_worker(nodes[1])
    assert world.run(world.now + 20.0, lambda: all(n.running and n.running.round_number == 1 for n in nodes))
    ordered = sorted(nodes, key=lambda node: node.running.group_rank if node.running else 0)
    world.fail_worker(ordered[1])
    world.run(world.now + 0.5)
    assert ordered[0].agent.phase is AgentPhase.STOPPING
    world.cut(ordered[:1], 30.0)
    assert world.run(world.now + 3.0, lambda: ordered[0].running is None), "it uses its whole grace"


def test_who_was_called_lost_and_lives_is_waited_for() -> None:
    """Another node judges by what it has read, and its word arrives late: the node has sent a heartbeat since."""
    world, nodes = world_of("freeze")
    summary = nodes[1].state.summary
    assert summary is not None
    end = RoundEnd(0, Cause.NODE_LOST, Verdict.RESCALE, "an old judgement", lost_ranks=(0,), lost_counts=(1,))
    world.plan = lambda node, assignment, local_rank: SLOW
    for node in nodes:
        assert node.workers is not None
        node.workers.plans = [SLOW]
    nodes[0].note_trouble()  # else the judgement would break a law
    nodes[1].post(End(end))
    assert world.run(world.now + 30.0, lambda: all(n.running and n.running.round_number == 1 for n in nodes))
    assert world.now > 5.0


@pytest.mark.parametrize("moment", range(0, 75, 5))
def test_a_standby_that_ends_a_round_reads_once_more_whom_it_takes_for_lost(moment: int) -> None:
    """The node is back just when the standby, by what it has read before, ends the round: two would be rank 0."""
    world, (node, _) = world_of("freeze", 2, max_nodes=1, latency=(0.08, 0.1))
    assert node.workers is not None
    node.workers.plans = [SLOW]
    world.run(world.now + moment / 100)
    world.cut([node], 3.5)
    world.run(world.now + 12.0)  # it raises where a law is broken


@pytest.mark.parametrize("moment", range(20, 100, 20))
def test_a_standby_reads_once_more_a_member_that_was_silent_when_it_looked_last(moment: int) -> None:
    world, nodes = world_of("freeze", 4, max_nodes=3)
    first, *others = nodes
    for node in nodes[:3]:
        assert node.workers is not None
        node.workers.plans = [SLOW]
    world.plan = lambda node, assignment, local_rank: SLOW
    world.cut(nodes[:2], 6.0)
    world.run(world.now + 6.0 + moment / 100)
    world.cut(others, 4.0)
    assert world.run(world.now + 30.0, lambda: all(n.running and n.running.round_number > 0 for n in nodes[:3]))
    assert first.ends[0].cause is Cause.NODE_LOST


# --- the agent ------------------------------------------------------------------------------------------------------

ASSIGNMENT = Assignment(3, "me", "default", 1, 0, 2, 0, 2, 0, 2, "10.0.0.1", 4711)
OVER = RoundEnd(3, Cause.NODE_LOST, Verdict.RESCALE, "group rank 0 is lost")


def after(*events: agent.Input, policy: WhenCutOff = WhenCutOff.FREEZE) -> tuple[AgentPhase, list[agent.Command]]:
    """Return the phase and the commands after ``events``, in a round that runs."""
    state = agent_state.State(agent_state.Settings(3, 300.0, host="here", when_cut_off=policy))
    commands: list[agent.Command] = []
    for event in (agent.Begin(), agent.NodeChecked(), agent.RoundJoined(ASSIGNMENT), *events):
        result = step(state, event, 1.0)
        state, commands = result.state, list(result.commands)
    return state.phase, commands


CUT_OFF = agent.CutOff("no answer")
KILL = agent.StopWorkers(int(signal.SIGKILL), 0.0)


@pytest.mark.parametrize(
    "event",
    [
        agent.RoundEnded(OVER),
        agent.SignalReceived(signal.SIGTERM),
        agent.SignalReceived(signal.SIGINT, is_person=True),
        agent.PreemptionWarned(signal.SIGTERM, 60.0, "maintenance"),
        agent.NodeUnhealthy("disk full"),
        agent.RendezvousFailed(FailureKind.UNAVAILABLE, "away for good"),
        agent.CannotFreeze("no such ability"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_frozen_workers_are_killed_without_a_grace(event: agent.Input) -> None:
    """While they had one, they would run beside the next round's."""
    phase, commands = after(CUT_OFF, event)
    assert phase is AgentPhase.STOPPING
    assert [each for each in commands if isinstance(each, (agent.StopWorkers, agent.ThawWorkers))] == [KILL]


def test_frozen_workers_have_their_grace_when_the_job_is_over() -> None:
    """No round follows."""
    phase, commands = after(CUT_OFF, agent.JobClosed(evolve(OVER, verdict=Verdict.STOPPED)))
    assert phase is AgentPhase.STOPPING
    assert commands == [agent.ThawWorkers(), agent.StopWorkers(int(signal.SIGTERM), 30.0)]


def test_frozen_workers_go_on_in_their_round() -> None:
    assert after(CUT_OFF, agent.Reconnected()) == (AgentPhase.RUNNING, [agent.ThawWorkers()])


def test_a_frozen_worker_does_not_hang() -> None:
    assert after(CUT_OFF, agent.WorkerHung(0, 1, "no progress")) == (AgentPhase.FROZEN, [])


def test_workers_that_end_while_they_are_frozen_count() -> None:
    """Somebody else may kill them, the kernel for example."""
    _, commands = after(CUT_OFF, agent.WorkersExited((WorkerExited(0, 1, -9, 0),)))
    assert isinstance(commands[0], agent.Diagnose)


def test_workers_that_start_while_all_are_frozen_do_not_run() -> None:
    """They may have been held back until their start method was ready."""
    processes = Processes(lambda descriptor: None, lambda descriptor: None, lambda sentence: None)
    assert processes.freeze() == "", "none is there yet"
    context = IdleContext()
    with pytest.raises(PluginError, match="cannot be frozen"):
        processes.add(GuardedContext("own", context))
    processes.begin()  # as the runner does where a start fails
    assert context.is_closed


class Stoppable(IdleContext):
    def __init__(self) -> None:
        super().__init__()
        self.is_suspended = False

    def suspend(self) -> None:
        self.is_suspended = True

    def resume(self) -> None:
        self.is_suspended = False


@pytest.mark.parametrize("end", [agent.StopWorkers(15, 5.0), agent.ReleaseWorkers(15, 5.0, 5.0)])
def test_nothing_stays_frozen_where_all_workers_had_succeeded_when_they_were(
    end: agent.StopWorkers | agent.ReleaseWorkers,
) -> None:
    """Neither what they had started, nor the workers of the next round."""
    processes = Processes(lambda descriptor: None, lambda descriptor: None, lambda sentence: None)
    old, new = Stoppable(), Stoppable()
    processes.add(GuardedContext("own", old))
    processes.freeze()
    assert old.is_suspended
    assert after(CUT_OFF, agent.WorkersExited((WorkerExited(0, 1, 0, 0),)))[0] is AgentPhase.BARRIER
    if isinstance(end, agent.StopWorkers):
        processes.stop(end)
    else:
        processes.release(end)
    assert not old.is_suspended
    old.is_closed = True
    assert processes.take_gone() is not None
    processes.begin()
    processes.add(GuardedContext("own", new))
    assert not new.is_suspended


def test_stop_kills_at_once_and_ends_the_round_for_the_others() -> None:
    phase, commands = after(CUT_OFF, policy=WhenCutOff.STOP)
    assert phase is AgentPhase.STOPPING
    assert isinstance(commands[0], agent.EndRound)
    assert commands[0].end.lost_ranks == ()
    assert commands[1:] == [KILL]


LEAVING = [
    agent.SignalReceived(signal.SIGTERM),
    agent.PreemptionWarned(signal.SIGTERM, 60.0, "maintenance"),
    agent.NodeUnhealthy("disk full"),
]


@pytest.mark.parametrize("event", LEAVING, ids=lambda event: type(event).__name__)
def test_a_node_that_leaves_keeps_its_grace_when_it_is_cut_off_once_the_others_know(event: agent.Input) -> None:
    """Then they have begun without it; else they wait until it counts as lost."""
    assert after(event, CUT_OFF)[1] == [KILL]
    assert after(event, agent.RoundEnded(OVER), CUT_OFF)[1] == [KILL], "another reason was recorded"
    assert after(event, agent.RoundEnded(evolve(OVER, lost=("me",), lost_ranks=(0,))), CUT_OFF)[1] == []


def test_a_node_that_follows_the_others_has_no_grace_when_it_is_cut_off() -> None:
    assert after(agent.RoundEnded(OVER), CUT_OFF)[1] == [KILL]
    assert after(agent.RoundEnded(evolve(OVER, lost=("me",), lost_ranks=(0,))), CUT_OFF)[1] == [KILL]


# --- a minority -----------------------------------------------------------------------------------------------------


def test_a_minority_waits_says_so_and_gives_up() -> None:
    world, nodes = world_of(size=3, majority=True)
    for node in nodes[1:]:
        world.crash(node)
    assert world.run(world.now + 20.0, lambda: "1 of the 3 node(s) of round 0 are here (n" in nodes[0].state.reason)
    late = world.add_node("late", nodes[0].settings, joins_at=world.now)
    assert world.run(world.now + 70.0, lambda: nodes[0].gave_up is not None)
    assert late.running is None
    assert nodes[0].gave_up is not None
    assert nodes[0].gave_up.kind is FailureKind.TIMEOUT
    assert "majority=true" in nodes[0].gave_up.problem


def test_a_majority_goes_on_and_takes_the_others_in_again() -> None:
    world, nodes = world_of(size=3, majority=True)
    world.cut(nodes[:1], 10.0)
    assert world.run(world.now + 8.0, lambda: all(n.running and n.running.round_number == 1 for n in nodes[1:]))
    assert world.run(world.now + 30.0, lambda: all(n.running and n.running.group_world_size == 3 for n in nodes))


def test_a_minority_goes_on_as_soon_as_the_others_are_back() -> None:
    world, nodes = world_of(size=3, majority=True)
    world.cut(nodes[1:], 15.0)
    world.run(world.now + 14.0)
    assert nodes[0].state.phase is Phase.GATHERING
    assert world.run(world.now + 30.0, lambda: all(n.running and n.running.round_number == 1 for n in nodes))


# --- settings -------------------------------------------------------------------------------------------------------


def test_a_policy_that_nobody_knows_is_refused_with_the_known_ones() -> None:
    assert parse_when_cut_off(" Freeze ") is WhenCutOff.FREEZE
    with pytest.raises(UsageError, match=r"when_cut_off='pause' is not one of run, freeze, stop"):
        parse_when_cut_off("pause")


def test_a_node_is_cut_off_well_before_the_others_call_it_lost() -> None:
    assert TIMEOUTS.cut_off_timeout == pytest.approx(2.75)
    assert TIMEOUTS.silence_limit - TIMEOUTS.cut_off_timeout > 0.1 * TIMEOUTS.lease_timeout


# --- the host of the store ------------------------------------------------------------------------------------------


class Hosted(InMemoryStore):
    """A store that ends with this node."""

    is_host = True


@pytest.mark.parametrize("cause", [Cause.NODE_LEFT, Cause.UNHEALTHY, Cause.PREEMPTED, Cause.EXCEPTION])
def test_a_host_that_goes_takes_the_job_with_it_and_says_so(cause: Cause) -> None:
    """Whatever makes it go: its departure is not a new round at no cost."""
    end = RoundEnd(3, cause, Verdict.RESCALE, "it goes", lost=("me",), lost_ranks=(0,))
    told = end_with_store(end, Hosted(), ASSIGNMENT)
    assert told.verdict is Verdict.STOPPED
    assert told.reason == "it goes; it hosts the rendezvous store, which ends with it"


def test_a_host_that_stays_lets_the_round_end_as_it_does() -> None:
    stays = evolve(OVER, lost_ranks=(1,))
    assert end_with_store(stays, Hosted(), ASSIGNMENT) is stays
    alone = evolve(ASSIGNMENT, group_world_size=1)
    leaves = evolve(OVER, lost_ranks=(0,))
    assert end_with_store(leaves, Hosted(), alone) is leaves


def test_who_gives_up_for_want_of_nodes_tells_those_in_line_if_the_store_ends_with_it() -> None:
    node = NodeRecord("me", "default", 1, host="alpha")
    gave_up = RendezvousFailed(FailureKind.TIMEOUT, "2 of 3 nodes joined")
    assert why_no_round(gave_up, Hosted(), node) == (
        "2 of 3 nodes joined (alpha, which hosts the rendezvous store, has given up)"
    )
    assert why_no_round(RendezvousFailed(FailureKind.LOST, "gone"), Hosted(), node) == ""
    assert why_no_round(gave_up, None, node) == ""
