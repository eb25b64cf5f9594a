"""Nodes that claim a rank (``--node-rank``) of a round that runs: refused while its node is alive, and only then.

Most of it in the simulated world.  A node finds this out while it stands by, so that a gang that was killed and started
again waits for one lease.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorate import PluginHost
from quorate.errors import RendezvousStateError
from quorate.records import NodeRecord
from quorate.rendezvous import (
    InMemoryStore,
    RendezvousBackend,
    RendezvousInfo,
    RendezvousParameters,
    StoreRendezvousHandler,
    _joining as joining,
    _protocol as protocol,
)
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState, Liveness
from quorate.rendezvous._protocol import Key
from quorate.testing import Faults, SimulatedNode, World, settles
from quorate.timeouts import Timeouts

LEASE = 3.0


def fixed(size: int) -> protocol.Settings:
    return protocol.Settings(size, size, Timeouts(join_timeout=120.0, lease_timeout=LEASE), run_id="job")


def gang(world: World, size: int, name: str = "n", at: float = 0.0) -> list[SimulatedNode]:
    """Start nodes that claim the ranks from 0 on."""
    return [
        world.add_node(f"{name}{rank}", fixed(size), joins_at=at + world.random.uniform(0, 0.1), rank_hint=rank)
        for rank in range(size)
    ]


def running(seed: int, size: int, faults: Faults | None = None) -> tuple[World, list[SimulatedNode]]:
    world = World(seed, faults)
    nodes = gang(world, size)
    assert world.run(30, lambda: all(node.running is not None for node in nodes)), world.explain("no first round")
    world.run(world.now + world.random.uniform(0.5, 3.0))
    return world, nodes


def runs_as(node: SimulatedNode, rank: int) -> bool:
    return node.running is not None and node.running.group_rank == rank


# --- in the simulated world -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_the_claim_of_a_live_nodes_rank_is_refused_before_its_lease_is_over(rank: int) -> None:
    world, nodes = running(rank, 3)
    claimer = world.add_node("claimer", fixed(3), joins_at=world.now, rank_hint=rank)
    assert world.run(world.now + LEASE / 2, lambda: claimer.gave_up is not None), world.explain("it stands by")
    assert claimer.gave_up is not None
    assert f"node rank {rank} of the job 'job' is taken: the node n{rank} has it" in claimer.gave_up.problem
    assert "claimer claims it too" in claimer.gave_up.problem
    assert claimer.gave_up.told_round == 0
    world.run(world.now + 3 * LEASE)
    assert not any(node.ends for node in nodes)
    assert Heartbeat.decode(world.network.values[Key.ticket_heartbeat(1, 1)]).state is HeartbeatState.LEFT


def test_a_claim_that_may_be_refused_does_not_end_the_round_whatever_the_policy_says() -> None:
    world, nodes = running(5, 2)
    claimer = world.add_node("claimer", fixed(2), joins_at=world.now, rank_hint=0)
    claimer.decide_rescale = lambda summary, waiting: True  # type: ignore[method-assign] # a policy of this node alone
    world.run(world.now + 3 * LEASE)
    assert claimer.gave_up is not None
    assert not any(node.ends for node in nodes), world.explain("it has ended the round of the others")


def test_a_gang_with_ranks_that_starts_again_is_together_within_the_lease_and_a_second() -> None:
    for seed in range(10):
        world, nodes = running(seed, 4)
        for node in nodes:
            world.crash(node)
        again = gang(world, 4, "again", world.now + 0.2)
        limit = world.now + 0.3 + LEASE + 0.5
        together = world.run(limit, lambda again=again: all(runs_as(node, rank) for rank, node in enumerate(again)))
        assert together, world.explain(f"seed {seed}: not together")


def test_a_gang_that_starts_again_costs_each_node_the_same_whatever_its_size() -> None:
    def costs(size: int) -> tuple[int, int]:
        world, nodes = running(size, size)
        for node in nodes:
            world.crash(node)
        again = gang(world, size, "again", world.now + 0.2)
        assert world.run(world.now + 2 * LEASE, lambda: all(node.running is not None for node in again))
        others = sorted(again, key=lambda node: node.calls)[:-1]  # but the one that seals
        return max(node.calls for node in others), max(node.bytes for node in others)

    small, large = costs(8), costs(60)
    assert large[0] <= small[0] + 3
    assert large[1] <= small[1] * 1.3


def test_a_node_that_left_a_moment_ago_has_given_its_rank_up() -> None:
    world, nodes = running(3, 2)
    world.network.values[Key.rank_heartbeat(0, 1)] = Heartbeat(10**17, HeartbeatState.LEFT, "n1").encode()
    world.crash(nodes[1])
    again = world.add_node("again", fixed(2), joins_at=world.now, rank_hint=1)
    assert world.run(world.now + LEASE, lambda: runs_as(again, 1)), world.explain("not replaced")


def test_a_refused_node_that_was_started_again_and_again_does_not_delay_the_next_round() -> None:
    world, nodes = running(7, 2)
    for number in range(30):
        claimer = world.add_node(f"claimer{number}", fixed(2), joins_at=world.now, rank_hint=0)
        assert world.run(world.now + LEASE, lambda claimer=claimer: claimer.gave_up is not None)
    before = [node.calls for node in nodes]
    world.fail_worker(nodes[0])
    assert world.run(world.now + 2.0, lambda: all(runs_as(node, rank) for rank, node in enumerate(nodes)))
    # Five readings find the end of this line of 30 that have left it.
    assert max(node.calls - old for node, old in zip(nodes, before, strict=True)) < 25


#: What becomes of the node whose rank is claimed, and whether the claim is then refused.
FATES: tuple[tuple[str, bool], ...] = (("lives", True), ("crashes", False), ("pauses", True))


def claim(seed: int, fate: str) -> tuple[bool, bool]:
    """Return whether a claimer was refused, and whether it runs in the end; networks are bad."""
    choose = random.Random(seed)
    latency = choose.choice([(0.0002, 0.002), (0.001, 0.1), (0.05, 0.15)])
    loss = choose.choice([0.0, 0.03])
    faults = Faults(latency, loss, loss, failure_after=0.4)
    size = choose.choice([2, 3, 5])
    world, nodes = running(seed, size, faults)
    rank = choose.randrange(size)
    if fate == "crashes":
        world.crash(nodes[rank])
    elif fate == "pauses":
        world.pause(nodes[rank], choose.uniform(0.1, 0.6) * LEASE)
    claimer = world.add_node("claimer", fixed(size), joins_at=world.now + choose.uniform(0.0, 1.0), rank_hint=rank)
    world.run(world.now + 30.0, lambda: claimer.gave_up is not None or claimer.running is not None)
    return claimer.gave_up is not None, runs_as(claimer, rank)


@pytest.mark.parametrize(("fate", "is_refused"), FATES)
def test_a_claim_is_refused_if_and_only_if_the_node_of_the_rank_lives(fate: str, is_refused: bool) -> None:
    for seed in range(10):
        assert claim(seed, fate) == (is_refused, not is_refused), f"seed {seed}"


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "no claim is checked": (joining, "_claimed_key", lambda state, summary: None),
    "a rank is taken once a heartbeat was read": (Liveness, "has_moved", Liveness.exists),
    "a rank is never taken": (Liveness, "has_moved", lambda liveness, key: False),
    "a rank is taken though its node has left": (Liveness, "is_gone", lambda liveness, key, limit: False),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_check_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    assert any(claim(seed, fate) != (refused, not refused) for fate, refused in FATES for seed in range(3))


# --- between real handlers --------------------------------------------------------------------------------------------


class Kept(InMemoryStore):
    """Outlives every handler that closes it."""

    def close(self) -> None:
        pass


def test_both_sides_are_told_of_a_claim_and_nobody_waits_after_it() -> None:
    store = Kept()
    backend = RendezvousBackend("memory", "in this process", open_store=lambda parameters: store)

    def node(host: str, rank: int) -> StoreRendezvousHandler:
        parameters = RendezvousParameters("memory", "localhost:1", "job", 2, 2, linger_timeout=0.1)
        made = StoreRendezvousHandler(parameters, backend, PluginHost(paths=[]))
        made.prepare(NodeRecord(host, "default", 1, host=host, user="bob", rank_hint=rank))
        return made

    def joined(member: StoreRendezvousHandler) -> RendezvousInfo:
        return member.next_rendezvous()

    members = [node("h0", 0), node("h1", 1)]
    with ThreadPoolExecutor(2) as pool:
        assert [info.rank for info in pool.map(joined, members)] == [0, 1]
    claimer = node("h9", 0)
    with pytest.raises(RendezvousStateError, match="node rank 0 of the job 'job' is taken: the node h0 has it"):
        claimer.next_rendezvous()
    claimer.shutdown()  # it waits for its threads only for so long
    keys = [Key.refused(0, 1), Key.ticket_heartbeat(1, 1)]
    assert settles(lambda: None not in store.get(keys)), store.get(keys)
    sentence, ticket = store.get(keys)
    assert sentence is not None
    assert sentence.startswith(b"a node of bob on h9 wanted to join and was refused: node rank 0 of the job 'job' is")
    assert ticket is not None
    assert Heartbeat.decode(ticket).state is HeartbeatState.LEFT
    assert [member.num_nodes_waiting() for member in members] == [0, 0]
    for member in members:
        member.shutdown()
