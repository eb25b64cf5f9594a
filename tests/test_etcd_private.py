"""A job of one machine with an etcd of its own: the command of the plugin, and the program that its page shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import DEADLINE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "etcd.md"
PRIVATE = [sys.executable, "-m", "quorate_rendezvous_etcd"]
QUORATE = [sys.executable, "-m", "quorate", "run"]
SCRIPT = """
import os, sys
# One write a line: the workers share this standard output, and `print` writes piece by piece under -u.
sys.stdout.write("rank {RANK} of {WORLD_SIZE} {TORCHELASTIC_RUN_ID}\\n".format_map(os.environ))
sys.exit(int(sys.argv[1]))
"""


def _run(argv: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=DEADLINE
    )


@pytest.mark.parametrize("options", [[], ["--api=2"], ["--members=3", "--"]], ids=["v3", "v2", "three"])
def test_a_job_meets_in_an_etcd_of_its_own(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    argv = [*PRIVATE, *options, *QUORATE, "--nproc-per-node=2", "train.py", "0"]
    done = _run(argv, tmp_path, PET_RDZV_ID="mine", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 mine", "rank 1 of 2 mine"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith("quorate-etcd-")] == []


def test_it_ends_as_the_command_ends(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    failed = _run([*PRIVATE, *QUORATE, "--max-restarts=0", "train.py", "7"], tmp_path)
    assert failed.returncode == 1, failed.stderr
    shown = _run([*PRIVATE, *QUORATE, "--show-config", "train.py"], tmp_path)
    assert re.search(r"rdzv-backend\s.*etcd", shown.stdout), shown.stdout
    for argv, words in (
        ([], "the command to run is missing"),
        (["no-such-command"], "'no-such-command' cannot be run: No such file"),
    ):
        refused = _run([*PRIVATE, *argv], tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    nowhere = _run([*PRIVATE, "true"], tmp_path, QUORATE_ETCD_BINARY="/no/such/etcd")
    assert nowhere.returncode == 2
    assert "apt-get install etcd-server" in nowhere.stderr


def test_a_signal_reaches_the_command(tmp_path: Path) -> None:
    argv = [*PRIVATE, sys.executable, "-u", "-c", "import signal; print('up'); signal.pause()"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    done = _run([sys.executable, "-W", "error", "program.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{0: 'rank 0 of 2', 1: 'rank 1 of 2'}\n"
