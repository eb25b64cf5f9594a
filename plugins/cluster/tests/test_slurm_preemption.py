"""A real Slurm ends jobs: the workers of all nodes are told and save, once, and the exit code says what to do next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from slurm import Slurm

WORKER = str(Path(__file__).with_name("saving_worker.py"))
COMMAND = f"{sys.executable} -m quorate run"
AGENT = f"^{sys.executable} -m quorate run"  # not srun, whose command line has these words too


def script(folder: Path, how: str, flags: str = "") -> str:
    return f"srun --ntasks-per-node=1 {COMMAND} {flags} {WORKER} {folder} {how}\necho srun ended with $?\n"


def saved(folder: Path) -> dict[str, str]:
    """Return which signal each rank has saved for, by rank and start."""
    return {path.name: path.read_text().split()[0] for path in folder.glob("saved-*")}


def seconds_that_were_left(folder: Path) -> list[float]:
    return [float(path.read_text().split()[1]) for path in folder.glob("saved-*")]


@pytest.mark.parametrize("how", ["signal", "deadline"])
def test_a_warning_reaches_all_workers_and_the_job_can_start_again(slurm: Slurm, tmp_path: Path, how: str) -> None:
    job = slurm.submit(script(tmp_path, how), "-N2", "--time=10")
    slurm.wait_for_text(job, "begins", 2)
    # To one node only: the workers of both are told.
    slurm.run("sh", "-c", f"kill -USR1 $(pgrep -f -o '{AGENT}')")
    slurm.wait_for(job, "COMPLETED")
    output = slurm.output(job)
    assert saved(tmp_path) == {"saved-0-0": "SIGUSR1", "saved-1-0": "SIGUSR1"}, output
    assert min(seconds_that_were_left(tmp_path)) > 60  # the job's time, not the usual 30 s
    assert output.count("quorate: preempted: Slurm job") == 2
    assert "srun ended with 75" in output


def test_the_two_sigterms_of_a_time_limit_are_one_request(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(script(tmp_path, "signal"), "-N2", "--time=10")
    slurm.wait_for_text(job, "begins", 2)
    slurm.run("sh", "-c", f"for _ in 1 2; do pkill -TERM -f '{AGENT}'; sleep 0.01; done")
    slurm.wait_for(job, "COMPLETED")
    assert saved(tmp_path) == {"saved-0-0": "SIGTERM", "saved-1-0": "SIGTERM"}, slurm.output(job)
    assert "srun ended with 75" in slurm.output(job)


@pytest.mark.slow  # Slurm looks at its clock every half minute
def test_the_signal_that_was_asked_for_comes_before_the_time_limit(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(script(tmp_path, "signal"), "-N2", "--time=1", "--signal=USR1@58")
    slurm.wait_for(job, "COMPLETED", "TIMEOUT", "FAILED")
    output = slurm.output(job)
    assert saved(tmp_path) == {"saved-0-0": "SIGUSR1", "saved-1-0": "SIGUSR1"}, output
    assert "srun ended with 75" in output


def test_scancel_lets_the_workers_save_within_its_grace(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(script(tmp_path, "signal", "--requeue"), "-N2")
    slurm.wait_for_text(job, "begins", 2)
    assert slurm.run("scancel", job).returncode == 0
    slurm.wait_for(job, "CANCELLED")
    slurm.wait_until_free()
    assert saved(tmp_path) == {"saved-0-0": "SIGTERM", "saved-1-0": "SIGTERM"}, slurm.output(job)
    assert max(seconds_that_were_left(tmp_path)) <= 3.0  # of the four that Slurm is configured for
    assert slurm.state(job) == "CANCELLED"  # and not in the queue again


def test_a_job_is_put_in_the_queue_again_where_that_was_asked_for(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(script(tmp_path, "signal", "--requeue"), "-N2", "--time=10", "--requeue", "--open-mode=append")
    slurm.wait_for_text(job, "begins", 2)
    slurm.run("scancel", "--signal=USR1", job)
    slurm.wait_for(job, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")  # Slurm holds it back for two minutes
    slurm.wait_for_text(job, "begins 0 start 1")
    slurm.wait_for(job, "COMPLETED")
    output = slurm.output(job)
    assert output.count("is put in the queue again: scontrol requeue") == 1
    assert set(saved(tmp_path)) >= {"saved-0-0", "saved-1-0"}
    assert output.count("begins") == 4
