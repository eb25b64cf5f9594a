"""Jobs of a real Open MPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = str(Path(__file__).with_name("cluster_worker.py"))
SECONDS = 60.0

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (make mpirun)")


def mpirun(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM", "QUORATE"))
    }
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


def test_mpirun_alone_makes_one_job_of_its_processes() -> None:
    done = mpirun("-n", "2", sys.executable, "-m", "quorate", "run", WORKER)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[:3] for line in done.stdout.splitlines()) == [["0", "2", "0"], ["1", "2", "1"]]
    assert "Open MPI: node 1 of 2, meets at 127.0.0.1:" in done.stderr


def test_a_launcher_inside_a_worker_is_not_a_part_of_the_job() -> None:
    inner = f"{sys.executable} -m quorate run {WORKER}"
    done = mpirun("-n", "2", sys.executable, "-m", "quorate", "run", "--no-python", "sh", "-c", inner)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["0", "1"], ["0", "1"]]


def test_the_cluster_can_be_left_out() -> None:
    done = mpirun("-n", "2", sys.executable, "-m", "quorate", "run", "--cluster=none", WORKER)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["0", "1"], ["0", "1"]]
    assert "Open MPI" not in done.stderr
