"""A crowd: what a round costs each node does not depend on how many there are, as etcd itself has counted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import DEADLINE_SECONDS, Admin
from .v2_harness import v2_tree

FEW = 10


def _run_crowd(backend: str, server: EtcdServer, run_id: str, nodes: int, processes: int) -> tuple[float, float]:
    """Have ``nodes`` agree on a round; returns the requests and bytes per node, as etcd has counted them."""
    script = Path(__file__).with_name("many_nodes.py")
    command = [sys.executable, str(script), backend, server.get_endpoint(), run_id]
    before = _traffic(server)
    with ExitStack() as stack:
        crowd = []
        for number in range(processes):
            here = nodes // processes + (number < nodes % processes)
            process = subprocess.Popen(
                [*command, str(here), str(nodes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            crowd.append(stack.enter_context(process))
            stack.callback(process.kill)
        said = [_hear(process) for process in crowd]
        after = _traffic(server)
        assert sorted(int(word) for words in said for word in words) == list(range(nodes)), said
        for process in crowd:
            assert process.stdin is not None
            process.stdin.close()
        assert [_hear(process) for process in crowd] == [["succeeded"]] * processes
        assert [process.wait(DEADLINE_SECONDS) for process in crowd] == [0] * processes
    return (after[0] - before[0]) / nodes, (after[1] - before[1]) / nodes


def _hear(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def _traffic(server: EtcdServer) -> tuple[float, float]:
    requests = traffic = 0.0
    for line in server._metrics(0).splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith(("grpc_server_started_total", "etcd_http_received_total")):
            requests += float(value)
        elif name.startswith("etcd_network_client_grpc_"):
            traffic += float(value)
    return requests, traffic


_SLOW = [
    pytest.mark.alone,
    pytest.mark.slow(reason="a crowd shares the cores of one machine"),
    pytest.mark.timeout(400),
]


@pytest.mark.parametrize(
    ("backend", "nodes", "processes"),
    [
        ("etcd", 60, 2),
        ("etcd-v2", 60, 2),
        pytest.param("etcd", 1000, 4, marks=_SLOW),
        pytest.param("etcd-v2", 250, 4, marks=_SLOW),
    ],
)
def test_the_cost_of_a_node_does_not_depend_on_their_number(
    start_etcd: Callable[..., EtcdServer],
    admin: Callable[..., Admin],
    run_id: str,
    backend: str,
    nodes: int,
    processes: int,
) -> None:
    server = start_etcd(enable_v2=backend == "etcd-v2")
    few = _run_crowd(backend, server, f"{run_id}-few", FEW, 2)
    many = _run_crowd(backend, server, f"{run_id}-many", nodes, processes)
    assert few[0] >= 5, "they are counted"
    assert many[0] <= 1.3 * few[0] + 2, "requests per node"
    if backend == "etcd-v2":
        # Bytes are not promised there: who counts reads all additions.
        assert v2_tree(server.get_endpoint()) == {}
    else:
        assert many[1] <= 1.3 * few[1] + 500, "bytes per node"
        assert admin(server).stored() == {}
        assert admin(server).leases() == set()
