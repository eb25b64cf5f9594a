"""What of a machine's CPUs belongs together: NUMA nodes, sockets, cores, L3 caches, as far as this process may use it.

All of it is read from ``/sys``, whose files are those of the kernel's documentation (``admin-guide/cputopology``,
``ABI/stable/sysfs-devices-node``, ``ABI/testing/sysfs-devices-system-cpu``).  A file that is missing is never an error.
What does not live here: devices (:mod:`._devices`), and which worker gets what (:mod:`._placement`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import final

from attrs import field, frozen

from quorate.affinity import parse_cpus
from quorate.files import read_bytes
from quorate.text import whole_number

_NODES = "sys/devices/system/node"
_CPUS = "sys/devices/system/cpu"
_L3 = 3
_DATA_CACHES = ("Unified", "Data")
#: The distance between two nodes whose distance is not known: more than any that the kernel tells.
_FAR = 256


@final
@frozen
class Topology:
    """The usable CPUs of a machine, each in exactly one node, socket and core.

    ``nodes`` has only nodes with usable CPUs; ``distances`` has the others too.  ``caches`` are groups of CPUs that
    share an L3 cache, and empty where the kernel tells of none.  ``memory`` are the nodes that have memory, ``None``
    where that is not known.  ``has_numa`` is false where the kernel tells of no nodes: then all CPUs are in node 0.
    """

    nodes: Mapping[int, frozenset[int]]
    sockets: tuple[frozenset[int], ...]
    cores: tuple[frozenset[int], ...]
    caches: tuple[frozenset[int], ...] = ()
    distances: Mapping[tuple[int, int], int] = field(factory=dict)
    memory: frozenset[int] | None = None
    has_numa: bool = True

    @property
    def cpus(self) -> frozenset[int]:
        """All CPUs that this process may use."""
        return frozenset().union(*self.nodes.values())

    def nearest(self, node: int, candidates: Collection[int]) -> int:
        """Return which of ``candidates`` is nearest to ``node``; of equally near ones that with the lowest number."""
        return min(candidates, key=lambda other: (self._distance(node, other), other))

    def _distance(self, node: int, other: int) -> int:
        return 0 if node == other else self.distances.get((node, other), _FAR)


def read_topology(usable: Collection[int], root: str = "/") -> Topology:
    """Return the topology of the machine whose ``/sys`` is below ``root``, restricted to the CPUs in ``usable``.

    Offline CPUs are left out.  A CPU that is in no node counts to the first node of its socket, as far as that is
    known, else to the first node of all.
    """
    online = _numbers(os.path.join(root, _CPUS, "online"))
    cpus = frozenset(usable) & online or frozenset(usable)
    folder = os.path.join(root, _NODES)
    numbers = numbered(folder, "node")
    sockets = _partition(cpus, lambda cpu: _siblings(root, cpu, "package_cpus_list", "core_siblings_list"))
    return Topology(
        nodes=_nodes(cpus, sockets, {number: _numbers(f"{folder}/node{number}/cpulist") for number in numbers}),
        sockets=sockets,
        cores=_partition(cpus, lambda cpu: _siblings(root, cpu, "core_cpus_list", "thread_siblings_list")),
        caches=_caches(cpus, root),
        distances=_distances(folder, numbers),
        memory=_numbers(f"{folder}/has_memory") or None,
        has_numa=bool(numbers),
    )


def _nodes(
    cpus: frozenset[int], sockets: tuple[frozenset[int], ...], listed: Mapping[int, frozenset[int]]
) -> dict[int, frozenset[int]]:
    """Return the usable CPUs of each node that has some; ``listed`` is what the kernel says, in ascending order."""
    nodes: dict[int, frozenset[int]] = {}
    left = cpus
    for number, of_node in listed.items():
        if of_node & left:
            nodes[number] = of_node & left
            left -= of_node
    for group in within(sockets, left):
        socket = next(socket for socket in sockets if group <= socket)
        home = next((number for number, of_node in nodes.items() if of_node & socket), min(nodes, default=0))
        nodes[home] = nodes.get(home, frozenset()) | group
    return nodes


def _caches(cpus: frozenset[int], root: str) -> tuple[frozenset[int], ...]:
    """Return the groups of CPUs that share an L3 cache; none unless each CPU has one."""
    told: dict[int, frozenset[int]] = {}

    def siblings(cpu: int) -> frozenset[int]:
        told[cpu] = _l3_siblings(root, cpu)
        return told[cpu]

    groups = _partition(cpus, siblings)
    return groups if all(told.values()) else ()


def _l3_siblings(root: str, cpu: int) -> frozenset[int]:
    """Return the CPUs with which ``cpu`` shares its cache of the highest level, if that is at least the third.

    Where that is a private one of a lower level, it does not show neighbours.
    """
    folder = os.path.join(root, _CPUS, f"cpu{cpu}", "cache")
    best, shared = _L3 - 1, frozenset[int]()
    for index in numbered(folder, "index"):
        level = whole_number(text_of(f"{folder}/index{index}/level"))
        if level is not None and level > best and text_of(f"{folder}/index{index}/type") in _DATA_CACHES:
            best, shared = level, _numbers(f"{folder}/index{index}/shared_cpu_list")
    return shared


def _siblings(root: str, cpu: int, *names: str) -> frozenset[int]:
    """Return the CPUs in the first of these files that says anything; the second name is that of older kernels."""
    folder = os.path.join(root, _CPUS, f"cpu{cpu}", "topology")
    return next((found for name in names if (found := _numbers(f"{folder}/{name}"))), frozenset())


def _partition(cpus: frozenset[int], siblings: Callable[[int], frozenset[int]]) -> tuple[frozenset[int], ...]:
    """Split ``cpus`` into groups of siblings, each asked for once; a CPU without siblings is a group of its own."""
    left, groups = set(cpus), []
    while left:
        first = min(left)
        group = frozenset((siblings(first) | {first}) & left)
        groups.append(group)
        left -= group
    return tuple(groups)


def within(groups: Sequence[frozenset[int]], cpus: frozenset[int]) -> list[frozenset[int]]:
    """Return what of ``groups`` is in ``cpus``, without those of which nothing is."""
    return [group & cpus for group in groups if group & cpus]


def _distances(folder: str, numbers: list[int]) -> dict[tuple[int, int], int]:
    """Return the distances between nodes; each node's file has one for every node, in ascending order."""
    found: dict[tuple[int, int], int] = {}
    for number in numbers:
        told = [whole_number(word) for word in text_of(f"{folder}/node{number}/distance").split()]
        distances = [distance for distance in told if distance is not None]
        if len(told) == len(distances) == len(numbers):
            found.update({(number, other): distance for other, distance in zip(numbers, distances, strict=True)})
    return found


def numbered(folder: str, prefix: str) -> list[int]:
    """Return the numbers of the entries called ``<prefix><number>``, ascending; nothing where the folder is missing."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(
        number
        for name in names
        if name.startswith(prefix) and (number := whole_number(name[len(prefix) :])) is not None
    )


def _numbers(path: str) -> frozenset[int]:
    try:
        return parse_cpus(text_of(path))
    except ValueError:
        return frozenset()


def text_of(path: str) -> str:
    """Return what a file of the kernel says; nothing where it is missing."""
    return read_bytes(path).decode("ascii", "replace").strip()
