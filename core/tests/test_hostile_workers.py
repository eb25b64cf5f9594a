"""Error files that workers write are read within bounds: a job with an odd one fails or restarts like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from core.tests.cli_runs import quorate, runs_a_job

from quorate.failures import ProcessFailure, read_error_file

SCRIPT = """
import os, pathlib, sys
text = pathlib.Path(sys.argv[1]).read_text()
if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
    raise SystemExit(4)
pathlib.Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(text)
raise SystemExit(3)
"""
EXTRA = '{"message": {"message": "the cause", "extraInfo": {"timestamp": %s}}}'
FILES = {
    "nested": '{"message": "the cause", "deep": ' + "[" * 600 + "]" * 600 + "}",
    "nested objects": '{"message": "the cause", "deep": ' + '{"a":' * 600 + "1" + "}" * 600 + "}",
    "not finite": '{"message": "the cause", "a": [NaN, Infinity, -Infinity, 1e999]}',
    "endless time": EXTRA % "Infinity",
    "late time": EXTRA % ("9" * 30),
    "early time": EXTRA % "-99999999999999",
    "long number": EXTRA % ("9" * 4000),
    "time in words": EXTRA % '"yesterday"',
}


@runs_a_job
@pytest.mark.parametrize("name", ["nested", "not finite", "endless time", "late time"])
def test_a_job_restarts_and_fails_whatever_its_worker_recorded(tmp_path: Path, name: str) -> None:
    script, recorded = tmp_path / "train.py", tmp_path / "recorded"
    script.write_text(SCRIPT)
    recorded.write_text(FILES[name])
    logs = tmp_path / "logs"
    flags = ["--standalone", "--max-restarts=1", f"--log-dir={logs}"]
    done = quorate("run", *flags, str(script), str(recorded))
    assert done.returncode == 1, done.stderr
    assert "exit code 4" in done.stderr
    (path,) = logs.glob("*/verdict.json")
    verdict = json.loads(path.read_text())
    assert verdict["rounds"][0]["first_cause"]["message"] == "the cause"


@pytest.mark.parametrize("name", FILES)
def test_an_odd_error_file_is_read_as_a_failure(tmp_path: Path, name: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(FILES[name])
    assert read_error_file(str(path)) is not None
    failure = ProcessFailure(0, 1, 1, str(path))
    assert failure.message == "the cause"
    assert failure.timestamp_isoformat()
    json.dumps(failure.error_file_data, allow_nan=False)
