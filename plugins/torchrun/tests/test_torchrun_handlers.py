"""quorate's backends in stock torchrun: real launchers of torch, real workers, gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from quorate.testing import free_port

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
        yield f"quorate-{request.param}", f"127.0.0.1:{free_port()}"


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
