"""A third party's rendezvous handler for torchrun in quorate: real nodes, real workers, torch's own dynamic rendezvous.

The third party is a folder of an installed distribution, made here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quorate.testing import free_port

pytest.importorskip("torch")

THEIRS = """
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

def generate():
    return create

def create(parameters):
    backend, store = c10d_rendezvous_backend.create_backend(parameters)
    return dynamic_rendezvous.create_handler(store, backend, parameters)
"""

#: Rank 1 fails in the first round once rank 0 is in it too.  Ranks end one after another in the second, so that the
#: first must wait.
WORKER = """
import os, sys, time
rank, restart = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
mark = sys.argv[1]
if not os.path.exists(mark):
    if rank == 1:
        while not os.path.exists(mark + ".met"):
            time.sleep(0.01)
        open(mark, "w").close()
        sys.exit(3)
    open(mark + ".met", "w").close()
    time.sleep(600)
time.sleep(rank)
print("rank", rank, "of", os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"] != "", flush=True)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    info = site / "third_party-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "third_party.py").write_text(THEIRS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchrun.handlers]\nthird = third_party:generate\n")
    return site


def nodes(installed: Path, count: int, *arguments: str) -> list[tuple[int, str]]:
    command = [sys.executable, "-m", "quorate", "run", f"--nnodes={count}", "--rdzv-backend=third", "--rdzv-id=job"]
    command += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-auth=off", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(count)
    ]
    try:
        return [(each.returncode, output) for each in started for output in [each.communicate(timeout=120)[0]]]
    finally:
        for each in started:
            each.kill()
            each.wait()


def test_two_nodes_meet_start_again_after_a_failure_and_wait_for_each_other(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    results = nodes(installed, 2, "--max-restarts=2", str(script), str(tmp_path / "mark"))
    output = "\n".join(output for _, output in results)
    assert [code for code, _ in results] == [0, 0], output
    assert sorted(re.findall(r"^rank (\d of .*)", output, re.MULTILINE)) == ["0 of 2 True", "1 of 2 True"]
    assert output.count("with it each node counts its own restarts") == 2


def test_a_worker_that_fails_ends_the_job_and_nobody_hangs(installed: Path) -> None:
    ((code, output),) = nodes(installed, 1, "--no-python", "sh", "-c", "exit 9")
    assert (code, "exit code 9" in output) == (1, True), output
