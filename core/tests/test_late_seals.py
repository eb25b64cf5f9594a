"""A node that is slow to learn that its round is sealed: what it reads, and what the other members make of it."""

from __future__ import annotations

import re

import pytest

from quorate.records import Cause
from quorate.rendezvous import _machine, _protocol as p
from quorate.rendezvous._liveness import Heartbeat
from quorate.rendezvous._member_tickets import decode_tickets, encode_tickets
from quorate.rendezvous._protocol import Key, Operation, Phase, Purpose
from quorate.rendezvous._wire import decode_end
from quorate.testing import Faults, SimulatedNode, World
from quorate.timeouts import Timeouts

TIMEOUTS = Timeouts(join_timeout=60.0, last_call_timeout=1.0)
LEASE = TIMEOUTS.lease_timeout
#: Longer than the others once waited for a first heartbeat.
LONG = 2 * TIMEOUTS.silence_limit + 2.0


def gathering(nodes: int, faults: Faults | None = None, most: int | None = None) -> tuple[World, list[SimulatedNode]]:
    """Return a world in which the seal of the first round is on its way to the store.

    All nodes have sent heartbeats of their tickets, unless there are ``most`` nodes.
    """
    world = World(0, faults if faults is not None else Faults(failure_after=0.05))
    settings = p.Settings(nodes, most or nodes + 1, TIMEOUTS)
    made = [world.add_node(f"n{number}", settings) for number in range(nodes)]
    assert world.run(5.0, lambda: any(Purpose.SEAL in node.state.pending for node in made)), world.explain(
        "nobody seals"
    )
    assert Key.sealed(0) not in world.network.values
    return world, made


def run_in(number: int, nodes: list[SimulatedNode]) -> bool:
    return all(node.running is not None and node.running.round_number == number for node in nodes)


def ended(world: World) -> list[str]:
    return [key for key in world.network.values if re.fullmatch(r"\d+/ended", key)]


def test_a_wait_that_stands_still_holds_up_neither_the_round_nor_its_end() -> None:
    world, nodes = gathering(3, Faults(wait_stalled=1.0, stall_seconds=(60.0, 60.0)))
    begun = world.now
    assert world.run(begun + 2.0, lambda: run_in(0, nodes)), world.explain("not all have joined")
    world.run(begun + LONG)
    assert ended(world) == []
    world.fail_worker(nodes[0])
    failed = world.now
    assert world.run(failed + 3.0, lambda: run_in(1, nodes)), world.explain("no second round")


@pytest.mark.parametrize("place", range(3))
def test_a_member_without_answers_is_not_lost_while_its_heartbeats_arrive(place: int) -> None:
    world, nodes = gathering(3)
    node = nodes[place]
    world.deafen(node, LONG)
    rest = [other for other in nodes if other is not node]
    # A sealer without answers seals, and does not know it.
    assert world.run(world.now + 3.0, lambda: run_in(0, rest)), world.explain("the others do not run")
    world.run(world.now + LONG - 3.5)
    assert node.running is None
    assert ended(world) == []
    assert world.run(world.now + 5.0, lambda: run_in(0, nodes)), world.explain("it has not joined")
    world.run(world.now + 2 * LEASE)
    assert ended(world) == []


@pytest.mark.parametrize("place", range(2))
def test_a_member_that_vanishes_before_it_knows_its_round_is_lost_after_one_lease(place: int) -> None:
    world, nodes = gathering(3)
    node = next(node for node in nodes if (node.state.phase is Phase.SEALING) is (place == 0))
    world.deafen(node, 0.3)
    assert world.run(world.now + 3.0, lambda: Key.sealed(0) in world.network.values)
    sealed = world.now
    world.crash(node)
    assert world.run(sealed + 2 * LEASE, lambda: ended(world) != []), world.explain("not lost")
    assert world.now - sealed < LEASE * 1.5
    end = decode_end(Key.ended(0), world.network.values[Key.ended(0)])
    assert end.cause is Cause.NODE_LOST
    assert re.fullmatch(rf"group rank \d \({node.name}\) is lost: no heartbeat within the lease of 3 s", end.reason)


def test_without_the_list_of_members_one_that_has_sent_nothing_has_two_leases() -> None:
    """The sealer may run an older version."""
    world, nodes = gathering(3)
    node = next(node for node in nodes if node.state.phase is Phase.AWAITING)
    world.deafen(node, 0.3)
    assert world.run(world.now + 3.0, lambda: Key.sealed(0) in world.network.values)
    for key in [key for key in world.network.values if key.startswith("0/rank-tickets/")]:
        del world.network.values[key]
    sealed = world.now
    world.crash(node)
    assert world.run(sealed + 3 * LEASE, lambda: ended(world) != []), world.explain("not lost")
    assert 2 * LEASE < world.now - sealed < 2.5 * LEASE


def test_a_member_that_leaves_before_it_knows_its_round_is_known_to_have_left() -> None:
    world, nodes = gathering(3)
    node = next(node for node in nodes if node.state.phase is Phase.AWAITING)
    world.deafen(node, LONG)
    rest = [other for other in nodes if other is not node]
    assert world.run(world.now + 3.0, lambda: run_in(0, rest))
    world.signal(node)
    asked = world.now
    assert world.run(asked + LEASE, lambda: ended(world) != []), world.explain("not known")
    assert f"({node.name}) left" in decode_end(Key.ended(0), world.network.values[Key.ended(0)]).reason


def test_a_standby_does_not_end_a_round_whose_members_do_not_know_it_yet() -> None:
    world, (node,) = gathering(1, most=1)
    world.deafen(node, LONG)
    assert world.run(world.now + 3.0, lambda: Key.sealed(0) in world.network.values)
    standby = world.add_node("standby", node.settings, joins_at=world.now)
    assert world.run(world.now + 1.0, lambda: standby.state.phase is Phase.STANDBY)
    world.run(world.now + LONG - 2.0)
    assert node.running is None
    assert ended(world) == []


# --- one machine ------------------------------------------------------------------------------------------------------


def test_the_list_of_members_comes_in_parts_of_a_bounded_size() -> None:
    tickets = list(range(1, 10_001))
    parts = encode_tickets(3, 7, tickets)
    assert list(parts) == [Key.rank_tickets(3, 7, part) for part in range(3)]
    assert max(map(len, parts.values())) < 1 << 15
    assert [ticket for key, value in parts.items() for ticket in decode_tickets(key, value)] == tickets


def test_a_heartbeat_that_failed_is_followed_by_the_next_one_as_soon_as_the_store_is_asked_again() -> None:
    world, nodes = gathering(2)
    node = nodes[0]
    assert world.run(
        world.now + 3.0, lambda: node.state.phase is Phase.RUNNING and Purpose.HEARTBEAT in node.state.pending
    )
    state, now = node.state, node.clock()
    first = state.pending[Purpose.HEARTBEAT]
    state = _machine.step(state, p.Failed(first, "connection reset"), now).state
    retry_at = state.trouble.retry_at
    assert retry_at is not None
    assert state.next_heartbeat_at is not None
    assert retry_at < state.next_heartbeat_at
    result = _machine.step(state, p.Tick(), retry_at)
    (second,) = [each for each in result.commands if isinstance(each, p.Call) and each.purpose is Purpose.HEARTBEAT]
    assert second.keys == first.keys
    assert Heartbeat.decode(second.values[0]).count == Heartbeat.decode(first.values[0]).count + 1


def test_an_earlier_call_that_fails_does_not_end_the_leaving() -> None:
    world, nodes = gathering(2)
    assert world.run(world.now + 3.0, lambda: run_in(0, nodes))
    left = _machine.step(nodes[0].state, p.Leave(), nodes[0].clock())
    assert left.state.phase is Phase.LEFT
    last = left.state.pending[Purpose.LEAVING_HEARTBEAT]
    earlier = p.Call(Purpose.ROUND_END, Operation.CREATE, ("0/ended",), (b"",))
    for failed in (p.Failed(earlier, "no answer"), p.Failed(None, "connection reset")):
        assert _machine.step(left.state, failed, nodes[0].clock()).commands == ()
    assert _machine.step(left.state, p.Failed(last, "no answer"), nodes[0].clock()).commands == (p.Left(),)
