"""The machines of rendezvous and agents in a simulated world: each promise as a short script.

What does not live here: random scenarios (``test_simulation_seeds``), whole stories (``test_simulation_transcripts``).
"""

from __future__ import annotations

import random

import pytest

from quorate import timeouts as timeouts_module
from quorate.records import Cause, RoundEnd, Verdict
from quorate.rendezvous import _liveness, _protocol as protocol
from quorate.rendezvous._machine import step
from quorate.rendezvous._wire import encode
from quorate.testing import Faults, SimulatedNode, World
from quorate.timeouts import Timeouts

FAST = protocol.Settings(2, 3, Timeouts(join_timeout=60.0, last_call_timeout=1.0))


def all_run(world: World, nodes: list[SimulatedNode], number: int | None = None) -> bool:
    """Whether all ``nodes`` run in one round (``number``), and it has no other member."""
    assignments = [node.running for node in nodes]
    if any(assignment is None for assignment in assignments):
        return False
    rounds = {assignment.round_number for assignment in assignments if assignment}
    size = {assignment.group_world_size for assignment in assignments if assignment}
    return len(rounds) == 1 and size == {len(nodes)} and (number is None or rounds == {number})


def three(seed: int = 0, bounds: protocol.Settings = FAST) -> tuple[World, list[SimulatedNode]]:
    world = World(seed)
    nodes = [world.add_node(name, bounds) for name in ("a", "b", "c")]
    assert world.run(10, lambda: all_run(world, nodes, 0)), world.explain("no first round")
    return world, nodes


def test_a_full_round_is_sealed_without_waiting_for_a_last_call() -> None:
    world, _ = three()
    assert world.now < 0.1


def test_the_minimum_waits_for_the_last_call() -> None:
    world = World()
    nodes = [world.add_node(name, FAST) for name in ("a", "b")]
    assert world.run(10, lambda: all_run(world, nodes, 0)), world.explain("no round")
    assert 1.0 <= world.now < 1.5


def test_min_not_met_gives_up_at_the_join_deadline_and_says_who_is_there() -> None:
    world = World()
    node = world.add_node("a", FAST)
    world.run(100, lambda: node.gave_up is not None)
    assert node.gave_up is not None
    assert node.gave_up.kind == "timeout"
    assert "1 of 2 nodes joined" in node.gave_up.problem
    assert "a" in node.gave_up.problem
    assert 60 <= world.now < 61


def test_a_worker_failure_reaches_all_nodes_in_one_round_trip_with_one_reason() -> None:
    world, nodes = three()
    failed_at, assignment = world.now, nodes[1].running
    assert assignment is not None
    world.fail_worker(nodes[1])
    assert world.run(failed_at + 5, lambda: all(node.ends for node in nodes))
    assert world.now - failed_at < 4 * world.faults.latency[1]
    assert {node.ends[0].reason for node in nodes} == {
        f"rank {assignment.first_rank} (local rank 0) on b failed: it raised; restart 1 of 3"
    }
    assert world.run(failed_at + 5, lambda: all_run(world, nodes, 1)), world.explain("no second round")
    assert {node.running.restart_count for node in nodes if node.running} == {1}


def test_two_nodes_that_fail_at_once_record_one_cause_and_one_restart() -> None:
    world, nodes = three()
    world.fail_worker(nodes[0])
    world.fail_worker(nodes[2])
    assert world.run(20, lambda: all_run(world, nodes, 1))
    assert len({node.ends[0].reason for node in nodes}) == 1
    assert {node.running.restart_count for node in nodes if node.running} == {1}


def test_survivors_keep_their_ranks_and_a_replacement_takes_the_vacated_one() -> None:
    bounds = protocol.Settings(3, 3, Timeouts(join_timeout=60.0))
    world, nodes = three(bounds=bounds)
    ranks = {node.name: node.running.group_rank for node in nodes if node.running}
    world.crash(nodes[0])
    replacement = world.add_node("d", bounds, joins_at=world.now + 1)
    team = [nodes[1], nodes[2], replacement]
    assert world.run(30, lambda: all_run(world, team)), world.explain("not re-formed")
    assert nodes[1].running is not None
    assert nodes[1].running.group_rank == ranks["b"]
    assert replacement.running is not None
    assert replacement.running.group_rank == ranks["a"]
    assert replacement.running.restart_count == 0  # losing a node is nobody's failure


def test_a_failure_over_a_node_that_died_costs_no_restart() -> None:
    """The survivors' collectives break before the lease is over; a node's death is free all the same."""
    world, nodes = three()
    world.crash(nodes[2])
    world.fail_worker(nodes[0])
    assert world.run(20, lambda: all_run(world, nodes[:2], 1)), world.explain("not re-formed")
    assert {node.running.restart_count for node in nodes[:2] if node.running} == {0}
    world.fail_worker(nodes[1])
    assert world.run(40, lambda: all_run(world, nodes[:2], 2)), world.explain("not restarted")
    assert {node.running.restart_count for node in nodes[:2] if node.running} == {1}


def test_a_lost_node_is_noticed_within_the_lease_whichever_rank_it_had() -> None:
    for victim in range(3):
        world, nodes = three(victim)
        world.run(world.now + 1.0)
        ordered = sorted(nodes, key=lambda node: node.running.group_rank if node.running else 0)
        crashed_at = world.now
        world.crash(ordered[victim])
        rest = [node for node in ordered if node.alive]
        assert world.run(crashed_at + 10, lambda world=world, rest=rest: all_run(world, rest)), world.explain(
            "not re-formed"
        )
        assert world.now - crashed_at <= FAST.timeouts.lease_timeout + 0.4
        assert rest[0].ends[0].cause is Cause.NODE_LOST


def test_a_late_joiner_ends_the_round_and_gets_in_at_no_cost() -> None:
    world = World()
    nodes = [world.add_node(name, FAST) for name in ("a", "b")]
    assert world.run(10, lambda: all_run(world, nodes, 0))
    late = world.add_node("c", FAST, joins_at=world.now + 1)
    begun = world.now + 1
    assert world.run(20, lambda: all_run(world, [*nodes, late], 1)), world.explain("late joiner not in")
    assert world.now - begun < 0.3 + 0.05
    assert late.running is not None
    assert late.running.restart_count == 0


def test_a_standby_is_promoted_and_learns_the_jobs_end() -> None:
    world, nodes = three()
    standby = world.add_node("d", FAST, joins_at=world.now)
    world.run(world.now + 20)
    assert all_run(world, nodes, 0), world.explain("the standby disturbed the round")
    assert standby.state.phase is protocol.Phase.STANDBY
    world.crash(nodes[1])
    team = [nodes[0], nodes[2], standby]
    assert world.run(world.now + 10, lambda: all_run(world, team)), world.explain("the standby was not promoted")
    second = world.add_node("e", FAST, joins_at=world.now)
    world.run(world.now + 1)
    for node in team:
        world.succeed(node)
    assert world.run(world.now + 5, lambda: all(n.closed is not None for n in [*team, second]))
    assert {n.closed.verdict for n in [*team, second] if n.closed} == {Verdict.SUCCEEDED}


def test_the_sealer_dies_while_gathering_and_the_next_ticket_seals() -> None:
    bounds = protocol.Settings(3, 4, Timeouts(join_timeout=60.0, last_call_timeout=2.0))
    world = World()
    nodes = [world.add_node(name, bounds) for name in ("a", "b", "c")]
    world.run(0.05)
    sealer = next(node for node in nodes if node.state.ticket == 1)
    world.crash(sealer)
    late = world.add_node("d", bounds, joins_at=0.1)
    rest = [node for node in nodes if node.alive] + [late]
    assert world.run(30, lambda: all_run(world, rest, 0)), world.explain(
        "no node took over, or the dead node is in the round"
    )


def test_a_paused_node_learns_that_it_was_left_out_and_stops_before_it_rejoins() -> None:
    world, nodes = three()
    world.pause(nodes[2], 10.0)
    rest = nodes[:2]
    assert world.run(world.now + 6, lambda: all_run(world, rest)), world.explain("not re-formed")
    assert world.run(world.now + 20, lambda: all_run(world, nodes)), world.explain("it did not come back")
    assert nodes[2].ends[0].cause is Cause.NODE_LOST


def test_a_pause_of_all_nodes_makes_none_of_them_lost() -> None:
    world, nodes = three()
    for node in nodes:
        world.pause(node, 30.0)
    world.run(world.now + 60)
    assert all_run(world, nodes, 0), world.explain("a pause of all nodes ended the round")


def test_all_members_die_and_a_standby_notices() -> None:
    world, nodes = three()
    standbys = [world.add_node(name, FAST, joins_at=world.now) for name in ("d", "e")]
    world.run(world.now + 1)
    for node in nodes:
        world.crash(node)
    assert world.run(world.now + 60, lambda: all_run(world, standbys)), world.explain("the standbys wait for ever")


def test_a_lost_store_ends_the_job_on_every_node_at_once() -> None:
    world, nodes = three()
    lost_at = world.now
    world.lose_store()
    assert world.run(lost_at + 60, lambda: all(node.gave_up for node in nodes)), world.explain("a node goes on")
    assert {node.gave_up.problem for node in nodes if node.gave_up} == {"the simulated store is gone"}
    assert world.now - lost_at < 1.0, "no node waits for a store that is gone"


def test_a_store_outage_stops_no_node_and_one_beyond_the_limit_is_an_error() -> None:
    bounds = protocol.Settings(3, 3, Timeouts(store_outage_timeout=100.0))
    world, nodes = three(bounds=bounds)
    world.faults = Faults(request_lost=1.0)
    world.run(world.now + 60)
    assert all_run(world, nodes, 0)
    world.faults = Faults()
    world.run(world.now + 60)
    assert all_run(world, nodes, 0), world.explain("the outage ended the round")
    world.faults = Faults(request_lost=1.0)
    world.run(world.now + 150)
    assert {node.gave_up.kind for node in nodes if node.gave_up} == {"unavailable"}


def test_no_short_lease_is_over_after_an_outage() -> None:
    """For outages of any length, which begin anywhere between two heartbeats of each node."""
    for seed in range(40):
        world, nodes = three(seed, protocol.Settings(3, 3, Timeouts(lease_timeout=1.0)))
        world.faults = Faults(request_lost=1.0, failure_after=0.5)
        world.run(world.now + 0.6 + 0.1 * seed)
        world.faults = Faults()
        world.run(world.now + 5)
        assert all_run(world, nodes, 0), world.explain(f"seed {seed}: the outage ended the round")


def test_an_agent_that_gave_up_on_the_recording_of_an_end_is_in_the_next_round() -> None:
    """Its rendezvous still waits for the store; the request to join is kept until the end of the round is known."""
    world, nodes = three()
    world.outage(20.0)
    world.fail_worker(nodes[0])
    world.run(world.now + 19)
    assert nodes[0].agent.phase.value == "joining"
    assert nodes[0].state.phase is protocol.Phase.RUNNING
    assert world.run(world.now + 20, lambda: all_run(world, nodes, 1)), world.explain("no second round")


def test_a_node_that_leaves_before_its_end_is_recorded_records_that_end() -> None:
    for seed in range(4):
        world, nodes = three(seed)
        world.faults = Faults(request_lost=1.0, failure_after=0.2)
        world.fail_worker(nodes[0], Verdict.FAILED)
        world.run(world.now + 5.0)
        world.faults = Faults()  # a moment before the agent gives up on the recording, and leaves
        assert world.run(world.now + 20, lambda nodes=nodes: all(node.finished is not None for node in nodes))
        assert {node.finished.outcome.value for node in nodes if node.finished} == {"failed"}


def test_a_node_that_was_paused_through_an_outage_asks_once_more_before_it_gives_up() -> None:
    bounds = protocol.Settings(2, 3, Timeouts(join_timeout=60.0, last_call_timeout=1.0, store_outage_timeout=20.0))
    world, nodes = three(bounds=bounds)
    world.outage(10.0)
    world.run(world.now + 5.0)
    world.pause(nodes[2], 30.0)
    assert world.run(world.now + 60.0, lambda: all_run(world, nodes) and nodes[2].ends != []), world.explain(
        "it is out"
    )
    assert nodes[2].gave_up is None


def test_a_standby_declares_no_node_lost_that_is_done_or_has_come_back() -> None:
    bounds = protocol.Settings(1, 2, Timeouts(join_timeout=60.0, last_call_timeout=1.0))
    world = World()
    nodes = [world.add_node(name, bounds) for name in ("a", "b")]
    assert world.run(10, lambda: all_run(world, nodes, 0))
    standby = world.add_node("c", bounds, joins_at=world.now)
    world.run(world.now + 1)
    first, second = sorted(nodes, key=lambda node: node.running.group_rank if node.running else 0)
    world.succeed(second)
    world.run(world.now + 0.5)
    world.crash(second)  # done and dead: no member is left that could declare the other one lost
    world.pause(first, 2.9)
    world.run(world.now + 60)
    assert first.running is not None
    assert not first.ends, world.explain("it was declared lost")
    world.crash(first)
    assert world.run(world.now + 4.0, lambda: standby.running is not None), world.explain("its loss was not noticed")
    assert standby.state.previous is not None
    assert standby.state.previous.ended is not None
    assert standby.state.previous.ended.lost_ranks == (0,)


def test_a_question_of_an_earlier_round_is_not_asked_again() -> None:
    """In a later round its answer, that all members are done, would be taken for one about that round."""
    world, nodes = three()
    for node in nodes:
        world.succeed(node)
    purpose = protocol.Purpose.DONE_CHECK
    assert world.run(10, lambda: any(purpose in node.state.pending for node in nodes))
    state = next(node.state for node in nodes if purpose in node.state.pending)
    end = RoundEnd(0, Cause.NODE_JOINED, Verdict.RESCALE, "a node joined")
    for event in (
        protocol.Failed(state.pending[purpose], "lost"),
        protocol.Appeared(protocol.Key.ended(0), encode(end)),
    ):
        state = step(state, event, state.standing.proven_at).state
    assert (state.phase, state.round_number) == (protocol.Phase.ENDED, 1)
    assert purpose in state.trouble.failed
    assert purpose not in state.pending
    again = step(state, protocol.Tick(), 1e9)
    assert [call for call in again.commands if isinstance(call, protocol.Call) and call.purpose is purpose] == []


def test_a_standby_notices_that_many_members_are_dead_at_once() -> None:
    bounds = protocol.Settings(1, 20, Timeouts(join_timeout=60.0, last_call_timeout=1.0))
    world = World()
    nodes = [world.add_node(f"n{number}", bounds) for number in range(20)]
    assert world.run(10, lambda: all_run(world, nodes, 0))
    standby = world.add_node("standby", bounds, joins_at=world.now)
    world.run(world.now + 1)
    for node in nodes:
        world.crash(node)
    assert world.run(world.now + 20, lambda: all_run(world, [standby])), world.explain(
        "it looks at one after the other"
    )


def test_operations_per_node_are_constant_for_all_but_the_sealer() -> None:
    def calls(size: int) -> tuple[int, int]:
        bounds = protocol.Settings(size, size, Timeouts(join_timeout=600.0))
        world = World(size)
        nodes = [world.add_node(f"n{i}", bounds) for i in range(size)]
        assert world.run(30, lambda: all(node.running is not None for node in nodes))
        others = [node for node in nodes if node.state.ticket != 1]
        return max(node.calls for node in others), max(node.bytes for node in others)

    small, large = calls(10), calls(400)
    assert large[0] <= small[0] + 2
    assert large[1] <= small[1] * 1.2


# --- the lease --------------------------------------------------------------------------------------------------------


def ended_by_a_pause(seed: int, seconds: float, victim: int, latency: tuple[float, float] = (0.0002, 0.002)) -> bool:
    """Return whether a pause of one node, which begins anywhere between two heartbeats, ended the round."""
    world = World(seed, Faults(latency=latency))
    clock = random.Random(seed)
    names = [
        world.add_node(name, FAST, clock=(clock.uniform(0, 1e5), 1 + clock.uniform(-0.0001, 0.0001))) for name in "abc"
    ]
    assert world.run(20, lambda: all_run(world, names, 0)), world.explain("no round")
    world.run(world.now + clock.uniform(2.0, 6.0))
    ordered = sorted(names, key=lambda node: node.running.group_rank if node.running else 0)
    world.pause(ordered[victim], seconds)
    world.run(world.now + seconds + 5.0)
    return any(node.ends for node in names)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_lease_means_what_it_says(victim: int) -> None:
    """With a lease of 3 s, who stands still for 2.9 s is never lost, and who does so for 3.5 s always is."""
    for seed in range(40):
        assert not ended_by_a_pause(seed, 2.9, victim), f"seed {seed}: lost after 2.9 s"
        assert ended_by_a_pause(seed, 3.5, victim), f"seed {seed}: not lost after 3.5 s"


def test_a_reader_that_takes_no_account_of_when_a_heartbeat_was_sent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_liveness, "_dated", lambda reading, old: reading)
    assert not all(ended_by_a_pause(seed, 3.5, 1) for seed in range(40))


def test_a_lease_that_ends_at_the_lease_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts_module, "_TOLERANCE", -0.03)
    assert any(ended_by_a_pause(seed, 2.9, 1) for seed in range(40))


def test_a_slow_network_loses_no_healthy_node_at_the_start() -> None:
    """200 ms for a round trip, and one message in twenty lost: in 50 starts, nobody is called lost."""
    for seed in range(50):
        world = World(seed, Faults(latency=(0.09, 0.11), request_lost=0.05, failure_after=0.4))
        nodes = [world.add_node(name, FAST) for name in "abc"]
        world.run(8.0)
        causes = {end.cause for node in nodes for end in node.ends}
        assert Cause.NODE_LOST not in causes, world.explain(f"seed {seed}: a healthy node was called lost")


def test_a_gang_that_starts_again_as_a_whole_is_together_within_the_lease_and_a_second() -> None:
    for seed in range(10):
        world, nodes = three(seed)
        world.run(world.now + seed / 10)
        for node in nodes:
            world.crash(node)
        again = [world.add_node(f"{node.name}2", FAST, joins_at=world.now + 0.2) for node in nodes]
        limit = world.now + 0.2 + FAST.timeouts.lease_timeout + 1.0
        assert world.run(limit, lambda world=world, again=again: all_run(world, again)), world.explain(f"seed {seed}")
