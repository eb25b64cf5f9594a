"""quorate's backends in stock torchrun: real launchers of torch, real workers, gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

WORKER = """\
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
rank, again = dist.get_rank(), os.path.exists(sys.argv[1])
dist.barrier()
if rank == 1 and not again:
    open(sys.argv[1], "w").close()
    os._exit(3)
dist.barrier()
sys.stdout.write(f"{rank} of {int(total)} again {again} {'QUORATE_ROUND' in os.environ}\\n")
dist.destroy_process_group()
"""


@pytest.fixture(params=["tcp", "c10d", "etcd"])
def backend(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        if request.param == "etcd":
            etcd = pytest.importorskip("quorate_rendezvous_etcd", reason="quorate-rendezvous-etcd is not installed")
            server = stack.enter_context(etcd.EtcdServer())
            yield "quorate-etcd", server.get_endpoint()
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        yield f"quorate-{request.param}", f"127.0.0.1:{port}"


def test_nodes_of_stock_torchrun_meet_through_quorate_and_meet_again_after_a_failure(
    backend: tuple[str, str], tmp_path: Path
) -> None:
    name, endpoint = backend
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2"]
    command += [f"--rdzv-backend={name}", f"--rdzv-endpoint={endpoint}", "--rdzv-id=job", str(script)]
    environment = {name: value for name, value in os.environ.items() if name != "QUORATE_EXEC"}
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(tmp_path / "again")],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        for node in nodes:
            stack.callback(node.kill)
        ends = [node.communicate(timeout=150) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    lines = sorted(line for output, _ in ends for line in output.splitlines())
    assert lines == ["0 of 2 again True False", "1 of 2 again True False"]


THIRD_PARTY = """\
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

def create(parameters):
    backend, store = create_backend(parameters)
    return create_handler(store, backend, parameters)

def generate():
    return create

def broken():
    raise OSError("no luck")
"""


@pytest.fixture
def third_party(tmp_path: Path) -> dict[str, str]:
    """Install a distribution with handlers, and return the environment in which it is found."""
    (tmp_path / "third_party.py").write_text(THIRD_PARTY)
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[torchrun.handlers]\nthird = third_party:generate\nbroken = third_party:broken\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_handler_of_a_third_party_runs_in_quorate(tmp_path: Path, third_party: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "quorate", "run", "--nnodes=2", "--max-restarts=2", "--rdzv-backend=third"]
    command += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=job", str(script), str(tmp_path / "again")]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                subprocess.Popen(command, env=third_party, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for node in nodes:
            stack.callback(node.kill)
        ends = [node.communicate(timeout=150) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    lines = sorted(line for output, _ in ends for line in output.splitlines())
    assert lines == ["0 of 2 again True True", "1 of 2 again True True"]


def test_a_handler_that_cannot_be_loaded_is_named(tmp_path: Path, third_party: dict[str, str]) -> None:
    command = [sys.executable, "-m", "quorate", "run", "--nnodes=2", "--rdzv-backend=broken", "--rdzv-id=j"]
    done = subprocess.run(
        [*command, "--no-python", "true"], env=third_party, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 4
    assert "'broken' (third_party:broken) could not be loaded: no luck" in done.stderr
