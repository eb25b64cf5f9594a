"""A user's own program around ``launch``, and the command ``quorate run``: the same promises from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import loopback_port
from tests.harness import DEADLINE, Job

PROGRAM = """
import json, os, sys
from quorate import ChildFailedError, LaunchConfig, SignalException, launch

def work(number):
    rank = int(os.environ["RANK"])
    if rank == number:
        raise ValueError(f"not {number}")
    return [rank, number]

if __name__ == "__main__":
    backend, endpoint, nodes = sys.argv[1:4]
    config = LaunchConfig(
        min_nodes=int(nodes), max_nodes=int(nodes), nproc_per_node=2, run_id="program", max_restarts=0,
        rdzv_backend=backend, rdzv_endpoint=endpoint, rdzv_configs={"last_call_timeout": 0.3},
    )
    for number in json.loads(sys.argv[4]):
        try:
            print(json.dumps(launch(config, work)(number)), flush=True)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print(json.dumps([rank, failure.exitcode, failure.message]), flush=True)
        except SignalException as error:
            print(json.dumps(["signal", error.sigval]), flush=True)
"""


def command(job: Job, program: Path, nodes: int, *numbers: int) -> list[str]:
    program.write_text(PROGRAM)
    return [sys.executable, str(program), job.backend.name, job.endpoint, str(nodes), json.dumps(numbers)]


def finish(job: Job, argv: list[str]) -> tuple[int, list[str], str]:
    """Run to the end: exit code, lines of stdout, stderr."""
    environment = {**os.environ, **job.environment}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_program_launches_several_times(job: Job, tmp_path: Path) -> None:
    """Values by global rank, ``ChildFailedError`` with the first failure, and once more in the same process."""
    code, lines, errors = finish(job, command(job, tmp_path / "program.py", 1, 7, 1, 8))
    assert code == 0, errors
    first, second, third = map(json.loads, lines)
    assert first == {"0": [0, 7], "1": [1, 7]}
    assert second == [1, 1, "ValueError: not 1"]
    assert third == {"0": [0, 8], "1": [1, 8]}


def test_two_programs_form_one_job(job: Job, tmp_path: Path) -> None:
    """The same over two nodes; each has the values of its own workers."""
    argv = command(job, tmp_path / "program.py", 2, 9)
    environment = {**os.environ, **job.environment}
    with (
        subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as other,
    ):
        values = [json.loads(process.communicate(timeout=DEADLINE)[0]) for process in (one, other)]
    assert {**values[0], **values[1]} == {str(rank): [rank, 9] for rank in range(4)}


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(3)", 1), ("", 0), ("import", 1)])
def test_the_command_tells_success_from_failure(job: Job, tmp_path: Path, script: str, code: int) -> None:
    """Exit code 0 for a job that went well, 1 for one whose workers failed; no traceback of quorate's own."""
    file = tmp_path / "script.py"
    file.write_text(script)
    argv = [sys.executable, "-m", "quorate", "run", f"--rdzv-backend={job.backend.name}"]
    argv += [f"--rdzv-endpoint={job.endpoint}", "--max-restarts=0", "--nproc-per-node=2", str(file)]
    returned, _, errors = finish(job, argv)
    assert returned == code, errors
    assert "quorate/agent" not in errors
    assert "OMP_NUM_THREADS" in errors, "B: the thread limit of workers that share a node comes with a notice"


def test_a_signal_before_the_command_has_found_the_others(job: Job, tmp_path: Path) -> None:
    """Stopped while it waits for a second node, the command exits with 128 + the signal's number."""
    file = tmp_path / "script.py"
    file.write_text("")
    argv = [sys.executable, "-m", "quorate", "run", f"--rdzv-backend={job.backend.name}", "--nnodes=2"]
    argv += [f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.token}", str(file)]
    environment = {**os.environ, **job.environment, "QUORATE_LOG": "debug"}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "joining the job" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors


def test_a_good_job_loads_no_heavy_library(tmp_path: Path) -> None:
    """Every plugin is installed here, and none of them brings these along; they are for what goes wrong."""
    loaded = loaded_by(["--standalone", "--no-python", "true"], tmp_path)
    assert "quorate.agent._runner" in loaded
    heavy = {"logging", "subprocess", "tempfile", "asyncio", "argparse", "email", "http.client", "difflib", "random"}
    heavy |= {"torch", "numpy", "grpc", "h2", "google.protobuf", "pynvml", "waitress", "prometheus_client"}
    # A job of one node needs neither a store nor the protocol.
    heavy |= {"quorate.rendezvous._driver", "quorate_rendezvous_static._server", "quorate_process_local._functions"}
    assert not loaded & heavy


@pytest.mark.parametrize("backend", ["c10d", "tcp"])
def test_plain_names_of_hosts_take_no_codec(tmp_path: Path, backend: str) -> None:
    """Python's codec for others takes a few milliseconds to import."""
    with loopback_port() as endpoint:
        port = endpoint.rpartition(":")[2]
        options = [f"--rdzv-backend={backend}", f"--rdzv-endpoint=localhost:{port}", "--no-python", "true"]
        loaded = loaded_by(options, tmp_path)
    assert "quorate.rendezvous._driver" in loaded
    assert "encodings.idna" not in loaded


def loaded_by(options: list[str], folder: Path) -> set[str]:
    """Run a job and return the modules that its agent has imported."""
    code = "import sys; from quorate.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-X", "importtime", "-c", code, "run", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
