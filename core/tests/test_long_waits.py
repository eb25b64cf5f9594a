"""Times that a person asks for may be longer than any system call waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from core.tests.cli_runs import quorate, runs_a_job

from quorate.clock import LONGEST_WAIT_SECONDS, monotonic, seconds_until
from quorate.timeouts import LONGEST_SECONDS, parse_seconds

SCRIPT = """
import os, time
if os.environ["RANK"] == "0":
    raise SystemExit(3)
time.sleep(600)
"""


@runs_a_job
@pytest.mark.parametrize(
    "flag", ["--shutdown-timeout=3000000", "--shutdown-timeout=1e300", "--rdzv-conf=join_timeout=1e300"]
)
def test_a_job_ends_as_ever_however_long_it_may_wait(tmp_path: Path, flag: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = quorate("run", "--standalone", "--nproc-per-node=2", "--max-restarts=0", flag, str(script))
    assert done.returncode == 1, done.stderr
    assert "exit code 3" in done.stderr


def test_waits_are_bounded_and_never_negative() -> None:
    assert seconds_until(monotonic() - 5.0) == 0.0
    assert seconds_until(1e300) == LONGEST_WAIT_SECONDS
    assert parse_seconds("x", 10**300) == LONGEST_SECONDS
