"""Disks that are full, or that cannot be written: the cause is named, and the exit code is a documented one.

Real file systems of 64 KiB without a free byte.  What becomes of the console is in ``test_unwritable_output``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from core.tests.cli_runs import clean_environment, runs_a_job

from quorate.cli import ExitCode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
SECONDS = 60.0
SMALL = 'mount -t tmpfs -o size=64k tmpfs {0} || exit 77; {1} exec "$@"'
BALLAST = "cat /dev/zero > {0}/ballast 2>/dev/null;"


def run_with_full(
    folder: Path, *argv: str, stdin: str = "", ballast: str = BALLAST, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``quorate run ARGV`` where the file system of ``folder`` has no byte left, or without ``ballast`` 64 KiB."""
    folder.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("quorate")), "run", "--standalone", *argv]
    shell = SMALL.format(quoted := shlex.quote(str(folder)), ballast.format(quoted))
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", shell, "sh", *command],
        env=clean_environment(QUORATE_DISABLE_PLUGINS="health", **environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode == 77 or "unshare: " in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert "Traceback" not in done.stderr, done.stderr
    return done


@runs_a_job
def test_a_worker_whose_last_words_meet_a_full_disk_has_a_cause(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import os\nos.write(1, b'out')\n")
    done = run_with_full(tmp_path / "logs", "--redirects=3", f"--log-dir={tmp_path}/logs", str(tmp_path / "train.py"))
    assert done.returncode == ExitCode.WORKER_FAILED
    assert "exit code 1; what it wrote last is lost: " in done.stderr, done.stderr
    assert "stderr.log cannot be written (No space left on device)" in done.stderr
    assert f"the verdict could not be written into {tmp_path}/logs/" in done.stderr


@runs_a_job
def test_a_worker_that_only_fails_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit(1)")
    (tmp_path / "logs").mkdir()
    done = run_with_full(tmp_path / "full", "--redirects=3", f"--log-dir={tmp_path}/logs", str(tmp_path / "train.py"))
    assert done.returncode == ExitCode.WORKER_FAILED
    assert "lost" not in done.stderr


def test_a_script_from_stdin_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    done = run_with_full(place, "-", ballast="", stdin="#" * 100_000, TMPDIR=str(place))
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "the script '-' cannot be kept in a temporary file: No space left on device; set TMPDIR" in done.stderr


def test_a_stdin_that_is_no_script_is_refused(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("quorate")), "run", "--standalone", "-"]
    with open("/dev/zero", "rb") as zeros:
        done = subprocess.run(
            command, env=clean_environment(), stdin=zeros, capture_output=True, text=True, timeout=SECONDS
        )
    assert done.returncode == ExitCode.USAGE
    assert "the script '-' has more than 16 MiB" in done.stderr
