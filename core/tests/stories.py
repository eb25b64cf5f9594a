"""Named scenarios: the transcript of each documents one behaviour of the protocol.

``core/tests/transcripts`` holds the transcripts; they are compared word by word, and reviewed like code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quorate.records import Verdict
from quorate.rendezvous._protocol import Settings
from quorate.testing._simulation import Plan, SimulatedNode, World
from quorate.timeouts import Timeouts

__all__ = ["STORIES", "transcript_of"]


def transcript_of(name: str) -> str:
    """Return the transcript of a story, headed by its name and its docstring."""
    story = STORIES[name]
    world = World(seed=1)
    world.plan = lambda node, assignment, local_rank: Plan(stop_after=0.5)
    story(world)
    lines = " ".join((story.__doc__ or "").split()).splitlines()
    return "\n".join([name, *lines, "", *world.transcript, ""])


def _job(world: World, names: str, low: int, high: int, **timeouts: float) -> list[SimulatedNode]:
    bounds = Settings(low, high, Timeouts(last_call_timeout=1.0, **timeouts))
    return [world.add_node(name, bounds, joins_at=0.1 * number) for number, name in enumerate(names)]


def _late(world: World, name: str, low: int, high: int, joins_at: float) -> SimulatedNode:
    return world.add_node(name, Settings(low, high, Timeouts(last_call_timeout=1.0)), joins_at=joins_at)


def _finish(world: World, until: float) -> None:
    world.run(until)
    for node in world.nodes:
        world.succeed(node)
    world.run(until + 10.0)


def _late_joiner(world: World) -> None:
    """Two nodes run; a third node joins and ends their round; the next round has all three and costs no restart."""
    _job(world, "ab", 2, 3)
    _late(world, "c", 2, 3, 5.0)
    _finish(world, 10.0)


def _leaver(world: World) -> None:
    """One of three nodes gets a signal to stop; the others continue without it at once."""
    nodes = _job(world, "abc", 2, 3)
    world.run(5.0)
    world.signal(nodes[1])
    _finish(world, 10.0)


def _sealer_dies(world: World) -> None:
    """The node that gathers the others crashes; the next in line notices it within the lease, and seals."""
    nodes = _job(world, "abc", 3, 4)
    world.run(0.5)
    world.crash(nodes[0])
    _late(world, "d", 3, 4, 1.0)
    _finish(world, 10.0)


def _split_and_heal(world: World) -> None:
    """A node is cut off; the others continue without it, and take it in again when it is back."""
    nodes = _job(world, "abc", 2, 3)
    world.run(5.0)
    world.cut([nodes[2]], 10.0)
    _finish(world, 25.0)


def _store_outage(world: World) -> None:
    """No node reaches the store for a while; the workers continue, and a failure meanwhile is recorded afterwards."""
    nodes = _job(world, "ab", 2, 2)
    world.run(5.0)
    world.outage(20.0)
    world.run(15.0)
    world.fail_worker(nodes[1])
    _finish(world, 35.0)


def _min_not_met(world: World) -> None:
    """A node waits for a second node that never comes."""
    _job(world, "a", 2, 2, join_timeout=30.0)
    world.run(40.0)


def _standby_promoted(world: World) -> None:
    """A third node comes to a full round of two and stands by; when a member crashes, it takes its place."""
    nodes = _job(world, "ab", 2, 2)
    _late(world, "c", 2, 2, 3.0)
    world.run(5.0)
    world.crash(nodes[1])
    _finish(world, 15.0)


def _closed_during_gather(world: World) -> None:
    """A worker's failure ends the job while a new node joins: that node learns why the job is over."""
    nodes = _job(world, "ab", 2, 2)
    world.run(5.0)
    _late(world, "c", 2, 2, 5.0)
    world.at(5.0, lambda: world.fail_worker(nodes[0], Verdict.FAILED))
    world.run(15.0)


def _victims(world: World) -> None:
    """A worker fails, and the connections of the others break: one cause is recorded, one restart is counted."""
    nodes = _job(world, "abc", 3, 3)
    world.connects_workers = True
    world.run(5.0)
    world.fail_worker(nodes[2])
    _finish(world, 15.0)


STORIES: Mapping[str, Callable[[World], None]] = {
    "late joiner": _late_joiner,
    "leaver": _leaver,
    "sealer dies": _sealer_dies,
    "split and heal": _split_and_heal,
    "store outage": _store_outage,
    "min not met": _min_not_met,
    "standby promoted": _standby_promoted,
    "closed during gather": _closed_during_gather,
    "victims of one failure": _victims,
}
