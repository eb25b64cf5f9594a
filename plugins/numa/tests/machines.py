"""Made-up machines: what their ``/sys``, ``/proc`` and ``/dev`` say, as files in a folder, and what should be read.

The machines below are real ones, by their vendors' documentation and published ``lscpu`` and ``nvidia-smi topo``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from quorate.affinity import format_cpus
from quorate_numa import Topology

FILES = "sys/devices/system"


@dataclass(frozen=True)
class Gpu:
    """A GPU: its PCI address, the number that the kernel gives as its NUMA node (-1: not told), its device id."""

    address: str
    node: int
    model: str = "0x2330"
    uuid: str = ""
    minor: int | None = None


@dataclass(frozen=True)
class Machine:
    """CPUs in groups; each group lists its CPUs.  ``nodes`` may have nodes without CPUs; ``numa`` false leaves all out.

    ``caches`` are what the kernel tells of the highest level, ``level`` (SNC: more than a node).
    """

    cores: Sequence[Sequence[int]]
    sockets: Sequence[Sequence[int]]
    nodes: Mapping[int, Sequence[int]]
    caches: Sequence[Sequence[int]] = ()
    level: int = 3
    distances: Callable[[int, int], int] = lambda first, second: 10 if first == second else 20
    memory: Sequence[int] | None = None
    offline: Collection[int] = ()
    numa: bool = True
    nvidia: Sequence[Gpu] = ()
    amd: Sequence[Gpu] = ()
    others: Sequence[tuple[str, str, str]] = field(
        default=(("0000:02:00.0", "0x1a03", "0x030000"), ("0000:31:00.0", "0x15b3", "0x020700"))
    )

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(cpu for core in self.cores for cpu in core)

    @property
    def online(self) -> frozenset[int]:
        return self.cpus - frozenset(self.offline)

    def usable_of(self, node: int, usable: Collection[int] | None = None) -> frozenset[int]:
        """Return the usable CPUs that the kernel lists for a node."""
        return frozenset(self.nodes[node]) & self.online & frozenset(self.cpus if usable is None else usable)

    def write(self, root: Path, order: Callable[[list[str]], list[str]] = sorted) -> Path:
        """Write the files below ``root``, in the order that ``order`` makes of their paths; return ``root``."""
        files = {**self._cpu_files(), **self._node_files(), **self._device_files()}
        for name in order(list(files)):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[name] + "\n")
        for gpu in self.nvidia:
            driver = root / "sys/bus/pci/drivers/nvidia"
            driver.mkdir(parents=True, exist_ok=True)
            os.symlink(driver, root / f"sys/bus/pci/devices/{gpu.address}/driver")
        return root

    def _cpu_files(self) -> dict[str, str]:
        files = {f"{FILES}/cpu/online": format_cpus(self.online), f"{FILES}/cpu/present": format_cpus(self.cpus)}
        for cpu in self.online:
            folder = f"{FILES}/cpu/cpu{cpu}"
            files[f"{folder}/topology/thread_siblings_list"] = self._told(self.cores, cpu)
            files[f"{folder}/topology/core_siblings_list"] = self._told(self.sockets, cpu)
            if self.sockets and cpu % 2:  # newer kernels have both names
                files[f"{folder}/topology/core_cpus_list"] = self._told(self.cores, cpu)
                files[f"{folder}/topology/package_cpus_list"] = self._told(self.sockets, cpu)
            # The lower levels of a few CPUs will do: there are thousands of files as it is.
            levels = [(1, "Instruction", self.cores), (2, "Unified", self.cores)] if cpu % 4 == 0 else []
            levels += [(self.level, "Unified", self.caches)] if self.caches else []
            for index, (level, kind, groups) in enumerate(levels):
                cache = f"{folder}/cache/index{index}"
                files[f"{cache}/level"], files[f"{cache}/type"] = str(level), kind
                files[f"{cache}/shared_cpu_list"] = self._told(groups, cpu)
        for cpu in self.offline:
            files[f"{FILES}/cpu/cpu{cpu}/online"] = "0"
        return files

    def _told(self, groups: Sequence[Sequence[int]], cpu: int) -> str:
        return format_cpus(self.online & frozenset(next(group for group in groups if cpu in group)))

    def _node_files(self) -> dict[str, str]:
        if not self.numa:
            return {}
        files = {f"{FILES}/node/online": format_cpus(self.nodes)}
        files[f"{FILES}/node/has_memory"] = format_cpus(self.nodes if self.memory is None else self.memory)
        for node in self.nodes:
            files[f"{FILES}/node/node{node}/cpulist"] = format_cpus(self.usable_of(node))
            files[f"{FILES}/node/node{node}/distance"] = " ".join(
                str(self.distances(node, other)) for other in sorted(self.nodes)
            )
        return files

    def _device_files(self) -> dict[str, str]:
        files = {}
        gpus = [(gpu, "0x10de", "0x030200") for gpu in self.nvidia] + [(gpu, "0x1002", "0x120000") for gpu in self.amd]
        listed = [(gpu.address, vendor, kind, gpu.model, gpu.node) for gpu, vendor, kind in gpus]
        listed += [(address, vendor, kind, "0x2000", -1) for address, vendor, kind in self.others]
        for address, vendor, kind, model, node in listed:
            folder = f"sys/bus/pci/devices/{address}"
            files[f"{folder}/vendor"], files[f"{folder}/class"] = vendor, kind
            files[f"{folder}/device"], files[f"{folder}/numa_node"] = model, str(node)
        for gpu in self.nvidia:
            if gpu.uuid:
                minor = "" if gpu.minor is None else f"\nDevice Minor: \t {gpu.minor}"
                files[f"proc/driver/nvidia/gpus/{gpu.address}/information"] = (
                    f"Model: \t\t NVIDIA\nGPU UUID: \t {gpu.uuid}\nBus Location: \t {gpu.address}{minor}"
                )
        for number in range(len(self.sockets)) if self.amd else ():
            files[f"sys/class/kfd/kfd/topology/nodes/{number}/properties"] = "cpu_cores_count 96\nsimd_count 0"
        for number, gpu in enumerate(self.amd, len(self.sockets)):
            domain, bus, rest = gpu.address.split(":")
            device, function = rest.split(".")
            location = int(bus, 16) << 8 | int(device, 16) << 3 | int(function)
            files[f"sys/class/kfd/kfd/topology/nodes/{number}/properties"] = (
                f"cpu_cores_count 0\nsimd_count 1216\ndomain {int(domain, 16)}\nlocation_id {location}"
                f"\nunique_id {int(gpu.uuid or '0', 16)}"
            )
        return files

    def topology(self, usable: Collection[int] | None = None) -> Topology:
        """Return what should be read: the model that the reading of the files is compared with.

        Only for machines whose CPUs are all in some node.
        """
        cpus = self.online & frozenset(self.cpus if usable is None else usable)

        def within(groups: Sequence[Sequence[int]]) -> tuple[frozenset[int], ...]:
            found = [frozenset(group) & cpus for group in groups]
            return tuple(sorted((group for group in found if group), key=min))

        nodes = {node: frozenset(listed) & cpus for node, listed in sorted(self.nodes.items())}
        pairs = [(first, second) for first in self.nodes for second in self.nodes]
        return Topology(
            {node: listed for node, listed in nodes.items() if listed} if self.numa else {0: cpus},
            within(self.sockets),
            within(self.cores),
            within(self.caches) if self.level >= 3 else (),
            {pair: self.distances(*pair) for pair in pairs} if self.numa else {},
            frozenset(self.nodes if self.memory is None else self.memory) if self.numa else None,
            self.numa,
        )


def regular(
    sockets: int,
    nodes_per_socket: int,
    cores_per_node: int,
    threads: int = 2,
    cores_per_cache: int | None = None,
    siblings_adjacent: bool = False,
) -> Machine:
    """Return a machine of equal parts.

    Linux numbers the first threads of all cores first, then the second ones; virtual machines and POWER number the
    threads of a core side by side.  ``cores_per_cache`` is ``None`` for one L3 cache per socket.
    """
    count = sockets * nodes_per_socket * cores_per_node
    cores = [
        [core * threads + thread if siblings_adjacent else core + thread * count for thread in range(threads)]
        for core in range(count)
    ]

    def cut(size: int) -> list[list[int]]:
        return [[cpu for core in cores[begin : begin + size] for cpu in core] for begin in range(0, count, size)]

    of_socket = nodes_per_socket * cores_per_node

    def distance(first: int, second: int) -> int:
        if first == second:
            return 10
        return 12 if first // nodes_per_socket == second // nodes_per_socket else 32

    return Machine(
        cores,
        cut(of_socket),
        dict(enumerate(cut(cores_per_node))),
        cut(cores_per_cache or of_socket),
        distances=distance,
    )


def nvidia(addresses: str, nodes: Sequence[int]) -> list[Gpu]:
    """Return GPUs by the bus numbers of their addresses."""
    return [
        Gpu(f"0000:{bus}:00.0", node, uuid=f"GPU-{number:08x}-0000-4000-8000-{number:012x}", minor=number)
        for number, (bus, node) in enumerate(zip(addresses.split(), nodes, strict=True))
    ]


#: NVIDIA DGX H100: two Xeon 8480C, a node per socket, four GPUs at each.
DGX_H100 = replace(regular(2, 1, 56), nvidia=nvidia("1b 43 52 61 9d c3 d1 df", [0, 0, 0, 0, 1, 1, 1, 1]))
#: NVIDIA DGX A100: two EPYC 7742 with four nodes per socket and an L3 cache per four cores; GPUs at every other node.
DGX_A100 = replace(
    regular(2, 4, 16, cores_per_cache=4), nvidia=nvidia("07 0f 47 4e 87 90 b7 bd", [3, 3, 1, 1, 7, 7, 5, 5])
)
#: Eight Xeon 8276, as in HPE Superdome Flex: a node per socket, no GPUs.
EIGHT_SOCKETS = regular(8, 1, 28)
#: Two Xeon 8480+ in SNC4: four nodes per socket, but the kernel tells of one L3 cache per socket.
SNC4 = replace(regular(2, 4, 14), nvidia=nvidia("1a 40 53 66 9a c0 d2 e4", [0, 1, 2, 3, 4, 5, 6, 7]))
#: Two sockets with all eight GPUs behind the switches of the first.
ONE_SIDED = replace(regular(2, 1, 32), nvidia=nvidia("0a 18 3b 44 48 51 5a 63", [0] * 8))
#: Two EPYC 9654 with one node per socket, twelve L3 caches each, and eight MI300X.
MI300X = replace(
    regular(2, 1, 96, cores_per_cache=8),
    amd=[
        Gpu(f"{domain:04x}:{bus}:00.0", node, "0x74a1", f"{number + 1:x}")
        for number, (domain, bus, node) in enumerate(
            [
                (0, "05", 0),
                (0, "26", 0),
                (0, "46", 0),
                (0, "65", 0),
                (0, "85", 1),
                (0, "a6", 1),
                (0, "c6", 1),
                (0, "e5", 1),
            ]
        )
    ],
)
#: Two EPYC 7763 in NPS0: one node that interleaves both sockets.
NPS0 = replace(regular(2, 1, 64, cores_per_cache=8), nodes={0: sorted(regular(2, 1, 64).cpus)})
#: NVIDIA GB200 NVL4, one of its superchips' hosts: two Grace CPUs, and the GPUs' memory as nodes without CPUs.
GRACE = replace(
    regular(2, 1, 72, threads=1),
    nodes={**regular(2, 1, 72, threads=1).nodes, **{node: [] for node in range(2, 6)}},
    nvidia=[Gpu("0008:01:00.0", 0), Gpu("0009:01:00.0", 0), Gpu("0018:01:00.0", 1), Gpu("0019:01:00.0", 1)],
)


def _distance_to_hbm(first: int, second: int) -> int:
    if first == second:
        return 10
    told = {(0, 1): 21, (0, 2): 13, (1, 3): 13, (0, 3): 23, (1, 2): 23, (0, 4): 28, (1, 4): 24}
    return told.get((min(first, second), max(first, second)), 31)


#: Two Xeon Max in flat mode: nodes 2 and 3 are the HBM of sockets 0 and 1; node 4 is CXL memory, far from both.
XEON_MAX = replace(
    regular(2, 1, 56), nodes={**regular(2, 1, 56).nodes, 2: [], 3: [], 4: []}, distances=_distance_to_hbm
)
#: A virtual machine whose kernel tells of no NUMA, no L3, and no node of its GPUs.
PLAIN_VM = replace(regular(1, 1, 8, siblings_adjacent=True), numa=False, caches=(), nvidia=nvidia("00 01", [-1, -1]))
#: Ampere Altra: eighty cores, and the highest cache that the kernel tells of is each core's own.
ALTRA = replace(regular(1, 1, 80, threads=1, cores_per_cache=1), level=2)

NAMED = {
    "DGX H100": DGX_H100,
    "DGX A100": DGX_A100,
    "eight sockets": EIGHT_SOCKETS,
    "SNC4": SNC4,
    "GPUs on one node": ONE_SIDED,
    "MI300X": MI300X,
    "NPS0": NPS0,
    "Grace": GRACE,
    "Xeon Max": XEON_MAX,
    "virtual machine": PLAIN_VM,
    "Altra": ALTRA,
}
