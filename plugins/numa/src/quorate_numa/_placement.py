"""Decides which CPUs each worker of a node gets.  A pure function of the topology, the mode and the devices' nodes.

The same machine gives the same answer on every host, in every round and in every process.  What does not live here:
reading the machine (:mod:`._topology`, :mod:`._devices`) and binding anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, final

from attrs import frozen

from ._modes import NumaMode
from ._topology import Topology, within

_T = TypeVar("_T")


@final
@frozen
class Placement:
    """What one worker is bound to.

    ``node`` is its home, ``device_node`` the node of its device, ``None`` if it has none or its node is not known.  The
    two differ where the device's node has no CPUs for this worker.  ``memory_node`` is where its memory should come
    from, ``None`` where that is left to the kernel.
    """

    cpus: frozenset[int]
    node: int
    device_node: int | None = None
    memory_node: int | None = None


def place(topology: Topology, mode: NumaMode, device_nodes: Sequence[int | None]) -> tuple[Placement, ...]:
    """Return the placement of each worker; ``device_nodes`` by local rank, as for :class:`Placement`.

    There is always an answer: what cannot be had (more exclusive shares than there are CPUs) is shared by neighbours.
    """
    homes = [
        _spread(topology, local_rank, len(device_nodes)) if node is None else topology.nearest(node, topology.nodes)
        for local_rank, node in enumerate(device_nodes)
    ]
    if mode is NumaMode.NODE:
        masks = [topology.nodes[home] for home in homes]
    elif mode is NumaMode.SOCKET:
        masks = [_socket_of(topology, home) for home in homes]
    elif mode is NumaMode.EXCLUSIVE:
        homes = _with_room(topology, homes)
        masks = _by_home(homes, {home: _shares(topology, home, homes.count(home)) for home in homes})
    else:
        masks = _by_home(homes, {home: _complexes(topology, home, homes.count(home)) for home in homes})
    return tuple(
        Placement(mask, home, device_node, _memory_node(topology, home, mask))
        for mask, home, device_node in zip(masks, homes, device_nodes, strict=True)
    )


def _spread(topology: Topology, local_rank: int, workers: int) -> int:
    """Return the home of a worker without a device.

    Workers take their places along all usable CPUs, node after node, at equal intervals; each is at home in the node in
    whose CPUs the middle of its interval lies.  So nodes get workers in proportion to their CPUs, neighbouring ranks
    are near each other, and a node with very few CPUs gets no worker that would be slower than all others.
    """
    total = len(topology.cpus)
    middle = ((2 * local_rank + 1) * total - 1) // (2 * workers)
    for number, cpus in topology.nodes.items():
        if middle < len(cpus):
            return number
        middle -= len(cpus)
    raise AssertionError("the middle of an interval lies within the CPUs")


def _socket_of(topology: Topology, home: int) -> frozenset[int]:
    """Return the CPUs of all nodes that share a socket with ``home``; a node may lie on two sockets (AMD's NPS0)."""
    sockets = [socket for socket in topology.sockets if socket & topology.nodes[home]]
    return frozenset().union(*(cpus for cpus in topology.nodes.values() if any(cpus & socket for socket in sockets)))


def _memory_node(topology: Topology, home: int, mask: frozenset[int]) -> int | None:
    """Return ``home`` where all CPUs of the mask are in it and it has memory."""
    has_memory = topology.has_numa and (topology.memory is None or home in topology.memory)
    return home if has_memory and mask <= topology.nodes[home] else None


# --- exclusive --------------------------------------------------------------------------------------------------------


def _with_room(topology: Topology, homes: Sequence[int]) -> list[int]:
    """Return ``homes`` with the last workers of a node that has fewer CPUs than workers moved to the nearest with room.

    Where no node has room they stay.
    """
    result = list(homes)
    room = {number: len(cpus) - homes.count(number) for number, cpus in topology.nodes.items()}
    for local_rank, home in reversed(list(enumerate(homes))):
        candidates = [number for number, left in room.items() if left > 0]
        if room[home] < 0 and candidates:
            nearest = topology.nearest(home, candidates)
            room[home] += 1
            room[nearest] -= 1
            result[local_rank] = nearest
    return result


def _shares(topology: Topology, home: int, workers: int) -> list[frozenset[int]]:
    """Split the CPUs of ``home``: by cores, or by single CPUs where there are fewer cores than workers.

    Cores that share a cache stand side by side, so that a share spans as few caches as possible.  Where there are fewer
    CPUs than workers, neighbours share one.
    """
    cores = sorted(
        within(topology.cores, topology.nodes[home]), key=lambda core: (_cache_of(topology, core), min(core))
    )
    if len(cores) < workers:
        cores = [frozenset({cpu}) for core in cores for cpu in sorted(core)]
    if len(cores) < workers:
        return _shared(cores, workers)
    return [frozenset().union(*part) for part in _split(cores, workers)]


def _cache_of(topology: Topology, core: frozenset[int]) -> int:
    return next((number for number, cache in enumerate(topology.caches) if core & cache), 0)


# --- core complexes ---------------------------------------------------------------------------------------------------


def _complexes(topology: Topology, home: int, workers: int) -> list[frozenset[int]]:
    """Give each worker of ``home`` a core complex, the largest first; where there are too few, neighbours share one.

    Without an L3 cache that the kernel tells of, the node is the complex.
    """
    complexes = within(topology.caches, topology.nodes[home]) or [topology.nodes[home]]
    complexes.sort(key=lambda cpus: (-len(cpus), min(cpus)))
    return complexes[:workers] if workers <= len(complexes) else _shared(complexes, workers)


# --- splitting --------------------------------------------------------------------------------------------------------


def _shared(masks: Sequence[frozenset[int]], workers: int) -> list[frozenset[int]]:
    """Return one of ``masks`` for each of more workers than there are masks; neighbours share one."""
    return [mask for mask, part in zip(masks, _split(range(workers), len(masks)), strict=True) for _ in part]


def _split(items: Sequence[_T], parts: int) -> list[Sequence[_T]]:
    """Split ``items`` into parts of neighbours whose sizes differ by one at most, larger ones first."""
    size, larger = divmod(len(items), parts)
    ends = [(part + 1) * size + min(part + 1, larger) for part in range(parts)]
    return [items[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _by_home(homes: Sequence[int], masks: Mapping[int, list[frozenset[int]]]) -> list[frozenset[int]]:
    """Return each worker's mask: those of a home go to its workers by local rank."""
    iterators = {home: iter(of_home) for home, of_home in masks.items()}
    return [next(iterators[home]) for home in homes]
