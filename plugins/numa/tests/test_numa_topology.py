"""What is read of a machine: its ``/sys`` as of real machines, and with what is missing, offline or forbidden."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from quorate_numa import read_topology

from .machines import DGX_H100, FILES, NAMED, XEON_MAX, Machine, regular


@pytest.mark.parametrize("name", NAMED)
def test_real_machines_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    machine = NAMED[name]
    assert read_topology(machine.cpus, str(machine.write(tmp_path))) == machine.topology()


def test_only_cpus_of_this_process_count(tmp_path: Path) -> None:
    """As in a container with a cpuset: /sys shows the whole machine."""
    usable = {*range(4, 12), *range(60, 64), 112 + 5}
    topology = read_topology(usable, str(DGX_H100.write(tmp_path)))
    assert topology == DGX_H100.topology(usable)
    assert topology.nodes == {0: frozenset([*range(4, 12), 117]), 1: frozenset(range(60, 64))}
    assert {frozenset({5, 117}), frozenset({4})} <= set(topology.cores)


def test_a_node_without_usable_cpus_is_known_by_its_distance_only(tmp_path: Path) -> None:
    topology = read_topology(range(56), str(XEON_MAX.write(tmp_path)))
    assert list(topology.nodes) == [0]
    assert topology.nearest(3, [0, 1]) == 1
    assert topology.nearest(2, [0, 1]) == 0
    assert topology.memory == frozenset(range(5))


def test_offline_cpus_do_not_count(tmp_path: Path) -> None:
    machine = replace(regular(2, 1, 4), offline=[1, 8, 15])
    topology = read_topology(machine.cpus, str(machine.write(tmp_path)))
    assert topology == machine.topology()
    assert topology.cpus == machine.cpus - {1, 8, 15}
    assert frozenset({0}) in topology.cores, "its other thread is offline"


def test_a_cpu_that_is_in_no_node_counts_to_its_socket(tmp_path: Path) -> None:
    machine = regular(2, 1, 4, threads=1)
    root = machine.write(tmp_path)
    (root / FILES / "node/node1/cpulist").write_text("4-6\n")
    assert read_topology(machine.cpus, str(root)).nodes == {0: frozenset(range(4)), 1: frozenset(range(4, 8))}


def test_a_cpu_that_nothing_is_known_of_counts_to_the_first_node(tmp_path: Path) -> None:
    machine = regular(2, 1, 2, threads=1)
    root = machine.write(tmp_path)
    topology = read_topology({*machine.cpus, 64}, str(root))
    assert topology.cpus == machine.cpus, "the kernel says that it is not online"
    (root / FILES / "cpu/online").unlink()
    topology = read_topology({*machine.cpus, 64}, str(root))
    assert topology.nodes == {0: frozenset({0, 1, 64}), 1: frozenset({2, 3})}
    assert frozenset({64}) in topology.cores
    assert topology.caches == (), "not each CPU has an L3 cache"


@pytest.mark.parametrize(
    "missing", ["sys", f"{FILES}/node", f"{FILES}/cpu", f"{FILES}/cpu/cpu0", f"{FILES}/node/node0"]
)
def test_whatever_is_missing_is_no_error(missing: str, tmp_path: Path) -> None:
    machine = regular(2, 1, 2)
    shutil.rmtree(machine.write(tmp_path) / missing)
    topology = read_topology(machine.cpus, str(tmp_path))
    assert topology.cpus == machine.cpus
    assert topology.has_numa == (not missing.endswith(("sys", "node")))
    if not topology.has_numa:
        assert topology.nodes == {0: machine.cpus}


@pytest.mark.parametrize("text", ["", "\n", "none", "3-", "0-x", "5-2", "-1", "0-99999999999999", "\xff"])
def test_files_that_make_no_sense_are_as_good_as_missing(text: str, tmp_path: Path) -> None:
    machine = regular(1, 1, 4)
    root = machine.write(tmp_path)
    for path in [*root.glob("**/cpulist"), *root.glob("**/*_list"), *root.glob("**/distance"), *root.glob("**/level")]:
        path.write_text(text)
    topology = read_topology(machine.cpus, str(root))
    assert topology.nodes == {0: machine.cpus}
    assert sorted(map(len, topology.cores)) == [1] * 8


def test_this_machine_is_read_whatever_it_is() -> None:
    usable = os.sched_getaffinity(0)
    topology = read_topology(usable)
    assert topology.cpus == usable
    for groups in (topology.nodes.values(), topology.cores, topology.sockets):
        assert sorted(cpu for group in groups for cpu in group) == sorted(usable)


machines = st.builds(
    regular,
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
)


@st.composite
def restricted_machines(draw: st.DrawFn) -> tuple[Machine, frozenset[int]]:
    """Return a machine with some CPUs offline, and the CPUs that a process may use, at least one of them online."""
    machine = draw(machines)
    cpus = sorted(machine.cpus)
    usable = draw(st.frozensets(st.sampled_from(cpus), min_size=1))
    offline = draw(st.frozensets(st.sampled_from(cpus))) - {min(usable)}
    return replace(machine, offline=sorted(offline)), usable


@given(restricted_machines(), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_every_machine_is_read_alike_whatever_the_order_of_its_folders(
    restricted: tuple[Machine, frozenset[int]], chance: random.Random
) -> None:
    machine, usable = restricted

    def shuffled(names: list[str]) -> list[str]:
        return chance.sample(names, len(names))

    with tempfile.TemporaryDirectory() as folder:
        topology = read_topology(usable, str(machine.write(Path(folder), shuffled)))
    assert topology == machine.topology(usable)
