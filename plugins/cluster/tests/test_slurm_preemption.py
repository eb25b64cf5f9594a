"""A real Slurm ends jobs: the workers of all nodes are told and save, once, and the exit code says what to do next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm import Slurm

from quorate.testing import free_port, settles

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


def test_a_sigterm_that_comes_once_the_job_has_ended_takes_nothing_away(tmp_path: Path) -> None:
    """One node was warned, and Slurm's signal to the first node comes while that asks for another start."""
    begun, go, done = (tmp_path / name for name in ("begun", "go", "done"))
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\ntouch {begun}\nwhile [ ! -e {go} ]; do sleep 0.05; done\ntouch {done}\n")
    scontrol.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM", "OMPI"))}
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n1"}
    flags = ("--rdzv-backend=tcp", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-auth=off", "--requeue")
    agents = [
        subprocess.Popen(
            [*COMMAND.split(), *flags, f"--rdzv-conf=is_host={1 - rank}", WORKER, str(tmp_path), "deadline"],
            env={**own, **step, "SLURM_PROCID": str(rank), "PATH": f"{tmp_path}:{own['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for agent in agents:
            assert agent.stdout is not None
            while not agent.stdout.readline().startswith("begins"):
                assert agent.poll() is None
        agents[1].send_signal(signal.SIGUSR1)
        assert settles(begun.exists)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            agents[0].send_signal(number)
        go.touch()
        outputs = [agent.communicate(timeout=60.0)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [75, 75], outputs
        assert done.exists()
    finally:
        for agent in agents:
            agent.kill()
            agent.communicate()


@pytest.mark.slow  # Slurm looks at its clock every half minute; both jobs wait for it at the same time
def test_slurm_warns_before_a_time_limit_and_ends_the_job_at_it(slurm: Slurm, tmp_path: Path) -> None:
    """The end is one SIGTERM for the tasks and one for all that is left of the job, and one request to save.

    The second would end a shell that waits for srun, and srun with it.
    """
    warned, ended, go = tmp_path / "warned", tmp_path / "ended", tmp_path / "go"
    warned.mkdir()
    ended.mkdir()
    command = f"exec srun --ntasks-per-node=1 {COMMAND} --requeue {WORKER} {ended} signal"
    waiting = f"while [ ! -e {go} ]; do sleep 0.05; done\n{command}\n"
    limited = slurm.submit(waiting, "--nodelist=n1,n2", "--time=10", "--requeue", "--open-mode=append")
    slurm.wait_for(limited, "RUNNING")
    changed = slurm.run("scontrol", "update", f"JobId={limited}", "EndTime=now+15")
    assert changed.returncode == 0, changed.stderr
    go.touch()
    signalled = slurm.submit(script(warned, "signal"), "--nodelist=n2,n3", "--time=10", "--signal=USR1@58")
    slurm.wait_for_text(limited, "begins", 2)
    slurm.wait_for_text(signalled, "begins", 2)  # the signal ends an agent that is not there yet
    changed = slurm.run("scontrol", "update", f"JobId={signalled}", "EndTime=now+59")
    assert changed.returncode == 0, changed.stderr
    slurm.wait_for_text(limited, "is put in the queue again: scontrol requeue", seconds=90)
    output = slurm.output(limited)
    assert "DUE TO TIME LIMIT" in output
    first = {name: word for name, word in saved(ended).items() if name.endswith("-0")}
    assert first == {"saved-0-0": "SIGTERM", "saved-1-0": "SIGTERM"}, output
    assert max(seconds_that_were_left(ended)) <= 3.0  # of the four that Slurm is configured for
    assert output.count("saved 0 SIGTERM") == output.count("saved 1 SIGTERM") == 1
    slurm.wait_for(signalled, "COMPLETED", "TIMEOUT", "FAILED")
    output = slurm.output(signalled)
    assert saved(warned) == {"saved-0-0": "SIGUSR1", "saved-1-0": "SIGUSR1"}, output
    assert "srun ended with 75" in output
    slurm.wait_for(limited, "PENDING", "RUNNING", "COMPLETED")
    slurm.run("scontrol", "update", f"JobId={limited}", "StartTime=now+1")  # Slurm holds it back for two minutes
    slurm.wait_for_text(limited, "begins 0 start 1")
    slurm.wait_for(limited, "COMPLETED")


def test_scancel_lets_the_workers_save_within_its_grace(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(script(tmp_path, "signal", "--requeue"), "-N2")
    slurm.wait_for_text(job, "begins", 2)
    assert slurm.run("scancel", job).returncode == 0
    slurm.wait_for(job, "CANCELLED")
    slurm.wait_until_free()
    assert saved(tmp_path) == {"saved-0-0": "SIGTERM", "saved-1-0": "SIGTERM"}, slurm.output(job)
    assert max(seconds_that_were_left(tmp_path)) <= 3.0  # of the four that Slurm is configured for
    assert slurm.state(job) == "CANCELLED"  # and not in the queue again
    assert "is put in the queue again" not in slurm.output(job)


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
