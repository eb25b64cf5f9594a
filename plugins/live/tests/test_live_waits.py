"""What waits in gloo ends, although gloo forgets it: a send that has begun, a receive of which a part is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from os import killpg
from pathlib import Path

import pytest

from .live_jobs import DEADLINE_SECONDS

pytest.importorskip("torch")

PROGRAM = Path(__file__).with_name("live_waits.py")
CASES = ("send to a stopped one", "half a message", "send to a silent one")

pytestmark = pytest.mark.slow  # it loads torch


def test_waits_for_a_peer_that_is_stopped_or_silent_end(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        try:
            output, _ = program.communicate(timeout=DEADLINE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                killpg(program.pid, signal.SIGKILL)
    assert sorted(output.splitlines()) == sorted(f"{case}: peer loss" for case in CASES)
