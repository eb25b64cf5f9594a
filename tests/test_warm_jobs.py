"""Whole jobs whose workers are started warm: ``quorate run --start-method=warm --preload …``.

What does not live here: the starter itself (``plugins/process_local/tests/test_warm.py``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import workers
from tests.backends import BACKENDS, Backend
from tests.harness import DEADLINE, Job

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["c10d"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """How workers are started has nothing to do with rendezvous: one backend is enough."""
    return BACKENDS[request.param]


@pytest.fixture
def quorate(tmp_path: Path) -> Iterator[Run]:
    """``quorate(*words)`` runs the command in a folder of its own, where modules to preload are found too."""
    running: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "quorate", "run", "--standalone", *words],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


COUNTED = "print('imported', flush=True)\n"
DIES_ONCE = """
import os, signal, sys
rank, attempt, imported = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], "counted" in sys.modules
os.write(1, f"{rank} {attempt} {sys.argv[1:]} {imported}\\n".encode())  # in one piece
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
"""


@pytest.mark.parametrize("kind", ["script", "module", "run-path"])
def test_a_job_imports_once_and_restarts_from_that(quorate: Run, tmp_path: Path, kind: str) -> None:
    """A killed rank costs one restart; nothing is imported again for it."""
    (tmp_path / "counted.py").write_text(COUNTED)
    (tmp_path / "job.py").write_text(DIES_ONCE)
    what = {"script": ["job.py"], "module": ["-m", "job"], "run-path": ["--run-path", "job.py"]}[kind]
    flags = ["--nproc-per-node=2", "--max-restarts=1", "--start-method=warm", "--preload", "counted"]
    code, out, err = finish(quorate(*flags, *what, "${local_rank}"))
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "imported"
    # A worker of the first attempt may have been stopped before it printed; of the second both have.
    assert set(lines[1:]) >= {"0 1 ['0'] True", "1 0 ['1'] True", "1 1 ['1'] True"}
    assert lines.count("imported") == 1


def test_a_job_can_be_stopped_while_its_imports_hang(quorate: Run, tmp_path: Path) -> None:
    """The agent waits for the template as it waits for anything else: a signal ends it at once, with nothing left."""
    (tmp_path / "hanging.py").write_text("import os, signal\nprint(os.getpid(), flush=True)\nsignal.pause()\n")
    (tmp_path / "job.py").write_text("print('never')\n")
    process = quorate("--start-method=warm", "--preload=hanging", "job.py")
    assert process.stdout is not None
    template = os.pidfd_open(int(process.stdout.readline()))
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert (code, out) == (128 + signal.SIGTERM, "")
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(template, 0)
    os.close(template)


def test_a_template_that_dies_before_it_is_ready_fails_the_job_with_a_reason(quorate: Run, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    (tmp_path / "job.py").write_text("print('never')\n")
    code, out, err = finish(quorate("--start-method=warm", "--preload=dying", "--max-restarts=3", "job.py"))
    assert (code, out) == (1, "")
    assert "the template process ended by signal 9 before it had imported dying" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--start-method=warm", "--no-python", "true"], 2, "the start method warm runs Python programs"),
        (["--start-method=warm", "--preload=no-module", "job.py"], 2, "'no-module' is not a name"),
        (["--start-method=warm", "--preload=absent", "job.py"], 1, "importing absent failed: ModuleNotFoundError"),
        (["--preload=json", "job.py"], 0, "--preload is ignored: the start method is exec"),
    ],
    ids=["no-python", "no-name", "no-module", "not-warm"],
)
def test_wrong_use_is_one_sentence(quorate: Run, tmp_path: Path, words: list[str], code: int, sentence: str) -> None:
    (tmp_path / "job.py").write_text("")
    ended, _, err = finish(quorate(*words))
    assert ended == code, err
    assert err.count(sentence) >= 1
    assert "Traceback" not in err


@pytest.mark.slow(reason="the template imports torch")
def test_warm_workers_form_a_process_group(job: Job) -> None:
    """Two agents, each with a template of its own; functions, and gloo, which starts threads in the workers."""
    plan = job.plan(
        workers.all_reduce,
        nodes=(2, 2),
        workers=2,
        agent={"start_method": "warm"},
        spec={"settings": {"preload": ("torch.distributed",)}},
    )
    values = {rank: value for outcome in job.run(plan, plan) for rank, value in outcome.values.items()}
    assert values == dict.fromkeys(range(4), (6, 4))
