"""One agent's bindings: looks at the machine, places the workers, and says once what was chosen.

What does not live here: what the machine looks like (:mod:`._topology`, :mod:`._devices`), who gets what
(:mod:`._placement`), and binding itself, which is the starter's (:mod:`quorate.affinity`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import final

from quorate.affinity import format_cpus
from quorate.memory_policy import can_prefer_node
from quorate.records import Event, WorkerLaunch
from quorate.services import AgentView

from ._devices import Device, are_numbered_by_bus, find_devices, visible_devices
from ._modes import NumaMode
from ._placement import Placement, place
from ._topology import Topology, read_topology

#: Of how many groups of workers a sentence tells.
_MOST_GROUPS = 16


@final
class AgentBinding:
    """Implements :class:`quorate.services.AgentService`; the hook calls :meth:`place`, on the agent's thread as well.

    Arguments:
        agent: whose workers they are.
        mode: how to bind them.
        root, usable: as for :class:`._plugin.NumaPlugin`.
        on_close: called when the agent's run is over.
    """

    def __init__(
        self,
        agent: AgentView,
        mode: NumaMode,
        root: str,
        usable: Callable[[], Collection[int]],
        on_close: Callable[[], object],
    ) -> None:
        self._agent, self._mode, self._root, self._usable, self._on_close = agent, mode, root, usable, on_close
        self._placements: tuple[Placement, ...] = ()
        self._known: object = None
        self._topology: Topology | None = None
        self._devices: tuple[Device, ...] = ()
        self._said = ""

    @property
    def worker_environment(self) -> Mapping[str, str]:
        return {}

    def observe(self, event: Event) -> None:
        """Does nothing: the hook is called for each worker."""

    def close(self) -> None:
        self._on_close()

    def place(self, launch: WorkerLaunch, workers: int) -> Placement:
        """Return the placement of one worker among ``workers`` of this node."""
        if self._topology is None or launch.local_rank == 0:
            # CPUs and devices may come and go between rounds; within one, all workers are placed by the same picture.
            self._topology, self._devices = read_topology(self._usable(), self._root), find_devices(self._root)
        environment = self._environment_of_all(launch, workers)
        nodes = self._nodes_of_devices(visible_devices(self._devices, environment), workers)
        if self._known != (self._topology, nodes):
            self._placements = place(self._topology, self._mode, nodes)
            self._known = self._topology, nodes
        if launch.local_rank == workers - 1:
            self._say(environment)
        return self._placements[launch.local_rank]

    def _environment_of_all(self, launch: WorkerLaunch, workers: int) -> Mapping[str, str]:
        """Return the environment whose variables say which devices the workers of this node have between them.

        With ``--virtual-local-rank`` each worker sees its own device alone, as local rank 0; the agent's environment
        has them all.
        """
        if launch.environment.get("LOCAL_RANK") != str(launch.local_rank):
            return self._agent.environment
        if launch.local_rank == 0 and workers > 1:
            own = visible_devices(self._devices, launch.environment)
            of_all = visible_devices(self._devices, self._agent.environment)
            if len(own) == 1 < len(of_all) and own[0] == of_all[0]:
                return self._agent.environment
        return launch.environment

    def _nodes_of_devices(self, devices: Sequence[Device | None], workers: int) -> list[int | None]:
        if not devices:
            return [None] * workers
        chosen = [devices[local_rank % len(devices)] for local_rank in range(workers)]
        return [None if device is None else device.node for device in chosen]

    def _say(self, environment: Mapping[str, str]) -> None:
        assert self._topology is not None
        sentence = describe(self._mode, self._topology, self._placements)
        if not are_numbered_by_bus(self._devices, environment):
            sentence += "; the GPUs differ, so set CUDA_DEVICE_ORDER=PCI_BUS_ID to have them numbered as assumed here"
        if sentence != self._said:
            self._said = sentence
            self._agent.say(sentence)


def describe(mode: NumaMode, topology: Topology, placements: Sequence[Placement]) -> str:
    """Return one sentence for people about where the workers of a node were placed."""
    groups: list[tuple[list[int], Placement]] = []
    for local_rank, placement in enumerate(placements):
        if groups and groups[-1][1] == placement:
            groups[-1][0].append(local_rank)
        else:
            groups.append(([local_rank], placement))
    told = [_describe_group(ranks, placement) for ranks, placement in groups[:_MOST_GROUPS]]
    if len(groups) > _MOST_GROUPS:
        told.append(f"and {sum(len(ranks) for ranks, _ in groups[_MOST_GROUPS:])} more workers")
    notes = []
    if not topology.has_numa:
        notes.append("the kernel tells of no NUMA nodes, so all CPUs count as node 0")
    if mode is NumaMode.CORE_COMPLEX and not topology.caches:
        notes.append("it tells of no L3 caches, so a core complex is a node")
    if mode is NumaMode.EXCLUSIVE and len(topology.cpus) < len(placements):
        notes.append(f"there are {len(topology.cpus)} CPUs for {len(placements)} workers, so some share one")
    if any(placement.memory_node is not None for placement in placements) and not can_prefer_node():
        notes.append("the memory policy is left as it is")
    return "; ".join([f"NUMA binding {mode}: {', '.join(told)}", *notes])


def _describe_group(ranks: Sequence[int], placement: Placement) -> str:
    who = f"local rank {ranks[0]}" if len(ranks) == 1 else f"local ranks {format_cpus(ranks)}"
    away = ""
    if placement.device_node not in (None, placement.node):
        away = f", the nearest to the device's node {placement.device_node}"
    return f"{who} on node {placement.node}{away} (CPUs {format_cpus(placement.cpus)})"
