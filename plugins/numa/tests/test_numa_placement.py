"""Who gets which CPUs: on real machines by number, and on any machine by what must always hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from quorate.affinity import format_cpus, parse_cpus
from quorate_numa import NumaMode, Topology, place

from .machines import (
    ALTRA,
    DGX_A100,
    DGX_H100,
    EIGHT_SOCKETS,
    GRACE,
    MI300X,
    NAMED,
    NPS0,
    ONE_SIDED,
    PLAIN_VM,
    SNC4,
    XEON_MAX,
    Machine,
    regular,
)
from .test_numa_topology import restricted_machines


def told(machine: Machine, mode: str, nodes: Sequence[int | None] | None = None, usable: str = "") -> list[str]:
    """Return the masks of workers, as lists; by default there is one per GPU."""
    if nodes is None:
        gpus = [*machine.nvidia, *machine.amd]
        nodes = [None if gpu.node < 0 else gpu.node for gpu in gpus]
    topology = machine.topology(parse_cpus(usable) or None)
    return [format_cpus(placement.cpus) for placement in place(topology, NumaMode(mode), nodes)]


# --- node and socket --------------------------------------------------------------------------------------------------


def test_node_is_all_of_the_devices_node() -> None:
    assert told(DGX_H100, "node") == ["0-55,112-167"] * 4 + ["56-111,168-223"] * 4
    on_nodes = {1: "16-31,144-159", 3: "48-63,176-191", 5: "80-95,208-223", 7: "112-127,240-255"}
    assert told(DGX_A100, "node") == [on_nodes[node] for node in (3, 3, 1, 1, 7, 7, 5, 5)]
    assert told(ONE_SIDED, "node") == ["0-31,64-95"] * 8
    assert told(GRACE, "node") == ["0-71"] * 2 + ["72-143"] * 2


def test_socket_is_all_nodes_of_the_devices_socket() -> None:
    assert told(SNC4, "socket") == ["0-55,112-167"] * 4 + ["56-111,168-223"] * 4
    assert told(DGX_H100, "socket") == told(DGX_H100, "node")
    assert told(NPS0, "socket", [0]) == [format_cpus(NPS0.cpus)], "its one node lies on both"


def test_workers_without_a_device_are_spread_over_the_nodes() -> None:
    assert [cpus.partition(",")[0] for cpus in told(EIGHT_SOCKETS, "node", [None] * 8)] == [
        f"{28 * node}-{28 * node + 27}" for node in range(8)
    ]
    assert told(DGX_H100, "node", [None] * 6) == ["0-55,112-167"] * 3 + ["56-111,168-223"] * 3
    homes = [placement.node for placement in place(SNC4.topology(), NumaMode.NODE, [None] * 2)]
    assert [home // 4 for home in homes] == [0, 1], "one on each socket"


def test_a_device_of_unknown_place_is_none() -> None:
    assert told(PLAIN_VM, "node") == ["0-15"] * 2
    assert told(PLAIN_VM, "exclusive") == ["0-7", "8-15"]
    assert told(DGX_H100, "node", [1, None]) == ["56-111,168-223"] * 2


def test_nodes_get_workers_in_proportion_to_their_usable_cpus() -> None:
    """A cgroup that leaves two CPUs of one node and fourteen of the other."""
    usable = "0-1,56-69"
    assert told(DGX_H100, "node", [None] * 8, usable) == ["0-1"] + ["56-69"] * 7
    assert told(DGX_H100, "exclusive", [None] * 8, usable) == [f"{cpu}-{cpu + 1}" for cpu in (0, *range(56, 70, 2))]
    assert told(DGX_H100, "node", [None] * 2, usable) == ["56-69"] * 2, "none is eight times slower than the other"


@pytest.mark.parametrize(("device_node", "home"), [(0, 0), (1, 1), (2, 0), (3, 1), (4, 1), (9, 0)])
def test_a_device_at_memory_without_cpus_belongs_to_the_nearest_node_that_has_some(device_node: int, home: int) -> None:
    (placement,) = place(XEON_MAX.topology(), NumaMode.NODE, [device_node])
    assert (placement.node, placement.device_node) == (home, device_node), "of node 9 nothing is known"


def test_a_device_whose_node_is_forbidden_belongs_to_the_nearest_one() -> None:
    assert told(SNC4, "node", [1, 6], usable="0-13,56-69") == ["0-13", "56-69"]


# --- exclusive --------------------------------------------------------------------------------------------------------


def test_exclusive_divides_the_cores_of_a_node_among_its_workers() -> None:
    assert told(DGX_H100, "exclusive")[:2] == ["0-13,112-125", "14-27,126-139"]
    assert told(DGX_H100, "exclusive")[7] == "98-111,210-223"
    assert told(ONE_SIDED, "exclusive") == [f"{4 * k}-{4 * k + 3},{64 + 4 * k}-{67 + 4 * k}" for k in range(8)]
    assert told(GRACE, "exclusive") == ["0-35", "36-71", "72-107", "108-143"]


def test_exclusive_gives_the_first_workers_what_cannot_be_divided() -> None:
    assert told(regular(1, 1, 8, threads=1), "exclusive", [0] * 3) == ["0-2", "3-5", "6-7"]


def test_exclusive_divides_by_threads_where_there_are_fewer_cores_than_workers() -> None:
    assert told(regular(1, 1, 2, siblings_adjacent=True), "exclusive", [0] * 3) == ["0-1", "2", "3"]


def test_exclusive_shares_hold_whole_caches_where_they_can() -> None:
    """Cores of two caches, numbered in turns."""
    machine = replace(regular(1, 1, 8, threads=1), caches=[[0, 2, 4, 6], [1, 3, 5, 7]])
    assert told(machine, "exclusive", [0] * 2) == ["0,2,4,6", "1,3,5,7"]


def test_exclusive_moves_workers_that_find_no_cpu_to_the_nearest_node() -> None:
    assert told(ONE_SIDED, "exclusive", usable="0-1,32-63") == ["0", "1"] + told(
        ONE_SIDED, "exclusive", [1] * 6, usable="0-1,32-63"
    )


def test_more_workers_than_cpus_share_with_their_neighbours() -> None:
    assert told(regular(1, 1, 2, threads=1), "exclusive", [0] * 5) == ["0", "0", "0", "1", "1"]


# --- core complexes ---------------------------------------------------------------------------------------------------


def test_each_worker_gets_a_core_complex_of_its_own() -> None:
    assert told(DGX_A100, "core-complex")[:4] == ["48-51,176-179", "52-55,180-183", "16-19,144-147", "20-23,148-151"]
    assert told(MI300X, "core-complex") == [
        f"{begin}-{begin + 7},{begin + 192}-{begin + 199}" for begin in (0, 8, 16, 24, 96, 104, 112, 120)
    ]


def test_a_cache_that_spans_nodes_is_cut_at_the_node() -> None:
    assert told(SNC4, "core-complex") == told(SNC4, "node")


def test_larger_complexes_come_first() -> None:
    machine = regular(1, 1, 8, threads=1, cores_per_cache=2)
    assert told(machine, "core-complex", [0] * 3, usable="0,2-3,4,6-7") == ["2-3", "6-7", "0"]


def test_neighbours_share_a_complex_where_there_are_too_few() -> None:
    machine = regular(1, 1, 8, threads=1, cores_per_cache=4)
    assert told(machine, "core-complex", [0] * 5) == ["0-3"] * 3 + ["4-7"] * 2


def test_without_a_shared_cache_the_node_is_the_complex() -> None:
    assert told(ALTRA, "core-complex", [0, 0]) == ["0-79"] * 2
    assert told(PLAIN_VM, "core-complex") == ["0-15"] * 2


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_nodes(machine: Machine, mode: str, nodes: Sequence[int | None]) -> list[int | None]:
    return [placement.memory_node for placement in place(machine.topology(), NumaMode(mode), nodes)]


def test_memory_comes_from_the_home_if_all_cpus_are_there() -> None:
    assert memory_nodes(SNC4, "node", [5, 0]) == [5, 0]
    assert memory_nodes(SNC4, "socket", [5, 0]) == [None, None], "each thread's own node is nearer"
    assert memory_nodes(DGX_H100, "socket", [1]) == [1]
    assert memory_nodes(PLAIN_VM, "node", [None]) == [None], "there are no nodes"
    assert memory_nodes(replace(SNC4, memory=[0, 4]), "node", [5, 4]) == [None, 4], "node 5 has no memory"


# --- what always holds ------------------------------------------------------------------------------------------------

modes = st.sampled_from(NumaMode)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Topology, list[int | None]]:
    """Return a machine, restricted somehow, and the nodes of the devices of some workers."""
    machine, usable = draw(restricted_machines())
    nodes = [None, *machine.nodes, max(machine.nodes) + 1]
    same = draw(st.booleans())
    workers = draw(st.integers(1, 20))
    device_nodes = (
        [draw(st.sampled_from(nodes))] * workers
        if same
        else draw(st.lists(st.sampled_from(nodes), min_size=workers, max_size=workers))
    )
    has_caches = draw(st.booleans())
    topology = machine.topology(usable)
    return (topology if has_caches else evolve(topology, caches=())), device_nodes


@given(situations(), modes)
def test_every_worker_gets_usable_cpus_near_its_home(
    situation: tuple[Topology, list[int | None]], mode: NumaMode
) -> None:
    topology, device_nodes = situation
    placements = place(topology, mode, device_nodes)
    assert len(placements) == len(device_nodes)
    for placement, device_node in zip(placements, device_nodes, strict=True):
        assert placement.cpus
        assert placement.cpus <= topology.cpus
        assert placement.device_node == device_node
        assert mode is NumaMode.SOCKET or placement.cpus <= topology.nodes[placement.node]
        if device_node in topology.nodes and mode is not NumaMode.EXCLUSIVE:
            assert placement.node == device_node


@given(situations())
def test_node_and_socket_are_whole(situation: tuple[Topology, list[int | None]]) -> None:
    topology, device_nodes = situation
    for placement in place(topology, NumaMode.NODE, device_nodes):
        assert placement.cpus == topology.nodes[placement.node]
    for placement in place(topology, NumaMode.SOCKET, device_nodes):
        assert topology.nodes[placement.node] <= placement.cpus
        for groups in (topology.sockets, topology.nodes.values()):
            assert all(group <= placement.cpus or not group & placement.cpus for group in groups)


@given(situations())
def test_exclusive_shares_are_disjoint_cover_their_nodes_and_are_equal(
    situation: tuple[Topology, list[int | None]],
) -> None:
    topology, device_nodes = situation
    placements = place(topology, NumaMode.EXCLUSIVE, device_nodes)
    if len(device_nodes) > len(topology.cpus):
        assert {placement.cpus for placement in placements} == {frozenset({cpu}) for cpu in topology.cpus}
        return
    assert not any(one.cpus & other.cpus for one, other in combinations(placements, 2))
    for node, cpus in topology.nodes.items():
        shares = [placement.cpus for placement in placements if placement.node == node]
        assert not shares or frozenset().union(*shares) == cpus
        cores = [core & cpus for core in topology.cores if core & cpus]
        if 0 < len(shares) <= len(cores):
            assert all(sum(core <= share for share in shares) == 1 for core in cores), "no core is divided"
            counts = [sum(core <= share for core in cores) for share in shares]
        else:
            counts = [len(share) for share in shares]
        assert not counts or (max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True))


@given(situations())
def test_workers_of_a_core_complex_share_a_cache_and_neighbours_share_complexes(
    situation: tuple[Topology, list[int | None]],
) -> None:
    topology, device_nodes = situation
    placements = place(topology, NumaMode.CORE_COMPLEX, device_nodes)
    for node, cpus in topology.nodes.items():
        complexes = [cache & cpus for cache in topology.caches if cache & cpus] or [cpus]
        masks = [placement.cpus for placement in placements if placement.node == node]
        assert all(mask in complexes for mask in masks)
        runs = [mask for mask, _ in groupby(masks)]
        assert len(runs) == len(set(runs)) == min(len(masks), len(complexes))
        lengths = [len(list(run)) for _, run in groupby(masks)]
        assert not lengths or max(lengths) - min(lengths) <= 1


@given(situations())
def test_workers_without_devices_are_spread_evenly(situation: tuple[Topology, list[int | None]]) -> None:
    topology, device_nodes = situation
    placements = place(topology, NumaMode.NODE, [None] * len(device_nodes))
    homes = [placement.node for placement in placements]
    assert homes == sorted(homes)
    for node, cpus in topology.nodes.items():
        assert abs(homes.count(node) * len(topology.cpus) - len(homes) * len(cpus)) <= len(topology.cpus)


_PRINT_ALL = """
import sys
sys.path.insert(0, sys.argv[1])
from numa_tests.machines import NAMED
from quorate_numa import NumaMode, place
for machine in NAMED.values():
    gpus = [*machine.nvidia, *machine.amd]
    for nodes in ([gpu.node for gpu in gpus if gpu.node >= 0], [None] * 5):
        for mode in NumaMode:
            print([sorted(it.cpus) for it in place(machine.topology(), mode, nodes)])
"""


def test_every_host_decides_alike(tmp_path: Path) -> None:
    """In processes with different hash seeds, as on different hosts."""
    folder = tmp_path / "numa_tests"
    os.symlink(Path(__file__).parent, folder)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PRINT_ALL, str(folder.parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1
    assert outputs.pop().count("\n") == 2 * len(NumaMode) * len(NAMED)
