"""Kubernetes takes one pod: the workers of all pods save, and the job goes on if enough pods stay."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quorate.testing import free_port

WORKER = str(Path(__file__).with_name("saving_worker.py"))
SECONDS = 60.0


@contextmanager
def pods(folder: Path, nodes: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Run two agents as pods of one job, until their workers have begun."""
    port = free_port()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM", "OMPI"))}
    flags = [f"--nnodes={nodes}", "--rdzv-backend=tcp", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=train"]
    command = [sys.executable, "-m", "quorate", "run", *flags]
    rest = [WORKER, str(folder), "deadline"]
    agents = []
    try:
        for index in range(2):
            pod = {"KUBERNETES_SERVICE_HOST": "1", "JOB_COMPLETION_INDEX": str(index), "HOSTNAME": f"train-{index}"}
            agents.append(
                subprocess.Popen(
                    [*command, f"--rdzv-conf=is_host={1 - index}", *rest],
                    env={**own, **pod},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for agent in agents:
            assert agent.stdout is not None
            assert agent.stdout.readline().startswith("begins")
        yield agents
    finally:
        for agent in agents:
            agent.kill()
            agent.communicate()


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("saved-*"))


def test_a_job_that_needs_all_pods_ends_as_preempted_on_all(tmp_path: Path) -> None:
    with pods(tmp_path, "2") as (first, second):
        second.send_signal(signal.SIGTERM)
        errors = [agent.communicate(timeout=SECONDS)[1] for agent in (first, second)]
        assert [first.returncode, second.returncode] == [75, 75], errors
    assert saved(tmp_path) == ["saved-0-0", "saved-1-0"]
    reason = "preempted: Kubernetes job train was told to stop by SIGTERM and will be killed in 30 s (node train-1)"
    assert all(reason in error for error in errors)


def test_a_job_that_may_be_smaller_goes_on_without_the_pod(tmp_path: Path) -> None:
    with pods(tmp_path, "1:2") as (first, second):
        second.send_signal(signal.SIGTERM)
        _, second_error = second.communicate(timeout=SECONDS)
        out, error = first.communicate(timeout=SECONDS)
        assert (second.returncode, first.returncode) == (75, 0), error + second_error
    assert saved(tmp_path) == ["saved-0-0", "saved-1-0"]
    assert out.count("begins") == 1  # the line of the first round has been read: this is the second


#: What a worker does to the folder in which its deadline is announced.
HARM = {
    "filled": """
with contextlib.suppress(OSError), open(f"{folder}/ballast", "wb", buffering=0) as ballast:
    while True:
        ballast.write(bytes(4096))
""",
    "removed": "shutil.rmtree(folder)",
}
SAVES = """
import contextlib, os, pathlib, shutil, signal, sys
import quorate
def save(number, frame):
    pathlib.Path(sys.argv[1], "saved").write_text(f"{number} {quorate.deadline()}")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
folder = os.environ["TMPDIR"]
HARM
print("begins", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("harm", "saved", "warning"),
    [
        ("filled", "15 Deadline(monotonic_seconds=", ""),
        ("removed", "15 None", "the workers' deadline could not be written to {}: No such file or directory"),
    ],
)
def test_a_worker_saves_though_it_has_harmed_the_folder_of_its_deadline(
    tmp_path: Path, harm: str, saved: str, warning: str
) -> None:
    (place := tmp_path / "small").mkdir()
    (script := tmp_path / "harms.py").write_text(SAVES.replace("HARM", HARM[harm]))
    mount = f"mount -t tmpfs -o size=64k tmpfs '{place}' && mkdir '{place}/inner' || exit 77; exec \"$@\""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM", "OMPI"))}
    pod = {"KUBERNETES_SERVICE_HOST": "1", "JOB_COMPLETION_INDEX": "0", "HOSTNAME": "train-0"}
    command = [sys.executable, "-m", "quorate", "run", "--standalone", str(script), str(tmp_path)]
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", mount, "sh", *command],
        env={**own, **pod, "QUORATE_DISABLE_PLUGINS": "health", "TMPDIR": f"{place}/inner"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "begins\n"
        agent.send_signal(signal.SIGTERM)
        _, errors = agent.communicate(timeout=SECONDS)
    assert agent.returncode == 75, errors
    assert (tmp_path / "saved").read_text().startswith(saved)
    assert ("deadline could not be written" in errors) == bool(warning)
    assert re.search(warning.format(f"{place}/inner/quorate-deadline-[0-9a-f]+.json"), errors)
    assert "Traceback" not in errors
