"""Jobs of a real Slurm: one line of ``srun`` is a job of all its nodes, and what cannot be meant is refused."""

from __future__ import annotations

import sys
from pathlib import Path

from slurm import Slurm

WORKER = str(Path(__file__).with_name("cluster_worker.py"))
QUORATE = (sys.executable, "-m", "quorate", "run")
COMMAND = " ".join((*QUORATE, WORKER))


def test_srun_alone_makes_one_job_of_its_nodes(slurm: Slurm) -> None:
    done = slurm.run("srun", "-N2", "-J", "train", *QUORATE, WORKER)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[:3] for line in lines] == [["0", "2", "0"], ["1", "2", "1"]]
    assert len({line.split()[3] for line in lines}) == 1
    job = lines[0].split()[3].removeprefix("train-")
    assert f"Slurm job {job}: node 1 of 2, meets at n1:{29400 + int(job)}" in done.stderr
    assert f"Slurm job {job}: node 2 of 2, meets at n1:{29400 + int(job)}" in done.stderr


def test_nodes_have_the_ranks_that_slurm_gave_them(slurm: Slurm) -> None:
    done = slurm.run(
        "srun", "-N3", "sh", "-c", f'exec {" ".join(QUORATE)} --no-python sh -c "echo $SLURM_PROCID \\$RANK"'
    )
    assert sorted(done.stdout.splitlines()) == ["0 0", "1 1", "2 2"], done.stderr


def test_several_agents_on_a_node_are_refused_with_the_line_to_write(slurm: Slurm) -> None:
    done = slurm.run("srun", "-N2", "--ntasks-per-node=2", *QUORATE, WORKER)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 quorate run --nproc-per-node=2" in done.stderr


def test_several_agents_on_a_node_may_be_meant(slurm: Slurm) -> None:
    done = slurm.run("srun", "-N1", "-n2", *QUORATE, "--nnodes=2", WORKER)
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["0", "1"], done.stderr


def test_a_batch_script_without_srun_is_refused(slurm: Slurm) -> None:
    job = slurm.submit(COMMAND, "-N2")
    slurm.wait_for(job, "FAILED")
    assert "this is the batch script or the shell of a job with 2 nodes" in slurm.output(job)
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 quorate run" in slurm.output(job)


def test_tasks_of_an_array_are_jobs_of_their_own(slurm: Slurm) -> None:
    job = slurm.submit(f"srun {COMMAND}\n", "-N2", "-J", "sweep", "--array=1-2")
    for task in ("1", "2"):
        slurm.wait_for(f"{job}_{task}", "COMPLETED")
        ids = {line.split()[3] for line in slurm.output(job, task).splitlines() if len(line.split()) == 4}
        assert ids == {f"sweep-{job}_{task}"}, slurm.output(job, task)


def test_the_parts_of_a_heterogeneous_job_form_one_job(slurm: Slurm) -> None:
    done = slurm.run("srun", "-N1", "-n1", *QUORATE, WORKER, ":", "-N2", "-n2", *QUORATE, WORKER)
    assert sorted(line.split()[:2] for line in done.stdout.splitlines()) == [[str(rank), "3"] for rank in range(3)]


def test_a_failure_ends_all_nodes_and_the_step(slurm: Slurm) -> None:
    done = slurm.run("srun", "-N2", *QUORATE, WORKER, "3")
    assert done.returncode == 1
    assert "exit code 3" in done.stderr
