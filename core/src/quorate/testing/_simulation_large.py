"""One large simulated job: all nodes join, a worker fails, all come back, a node dies, the rest succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..clock import monotonic
from ..rendezvous._protocol import Settings
from ._simulation import Law, SimulatedNode, World


def play_large(nodes: int) -> Iterator[str]:
    """Play a job of ``nodes`` nodes that start within a second; yields a sentence for each of its steps.

    Raises:
        SimulationError: a law was broken, or a step took longer than a minute of virtual time.
    """
    world = World(0)
    settings = Settings(nodes - 1, nodes)
    for number in range(nodes):
        world.add_node(f"n{number}", settings, joins_at=world.random.uniform(0.0, 1.0))
    running = list(world.nodes)
    yield _step(world, f"{nodes} nodes run", lambda: world.judge.rounds_running() == {0: nodes})
    world.fail_worker(running[nodes // 2])
    yield _step(world, "a worker failed; all run again", lambda: world.judge.rounds_running() == {1: nodes})
    victim = next(node for node in running if node.state.assignment and node.state.assignment.group_rank == 0)
    world.crash(victim)
    yield _step(world, "the first node died; the rest runs", lambda: world.judge.rounds_running() == {2: nodes - 1})
    for node in running:
        world.succeed(node)
    up = [node for node in running if node.is_up]
    yield _step(world, f"all workers succeeded; {len(up)} agents have exited", lambda: not _still_up(up))
    calls = sorted(node.calls for node in running)
    yield f"store calls per node: {calls[0]} to {calls[-2]}; the sealer's: {calls[-1]}"


def _still_up(nodes: list[SimulatedNode]) -> bool:
    """Return whether any node is up; those found down are taken off the end, so that none is looked at again."""
    while nodes and not nodes[-1].is_up:
        nodes.pop()
    return bool(nodes)


def _step(world: World, what: str, stop: Callable[[], bool]) -> str:
    began, started_at = world.now, monotonic()
    if not world.run(world.now + 60.0, stop):
        world.judge.fail(Law.CONVERGENCE, f"not within a minute: {what}")
    return f"{what}: {world.now - began:.2f} s of virtual time, {monotonic() - started_at:.1f} s of real time"
