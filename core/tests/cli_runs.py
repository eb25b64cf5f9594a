"""Runs of the command line.  No tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60.0


runs_a_job = pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without the variables of a job; which plugins are left out stays as it is."""
    own = ("PET_", "TORCHELASTIC_", "TORCH_ELASTIC_", "QUORATE_", "OMP_NUM", "PYTHON_EXEC", "RANK", "WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    if "QUORATE_DISABLE_PLUGINS" in os.environ:
        kept["QUORATE_DISABLE_PLUGINS"] = os.environ["QUORATE_DISABLE_PLUGINS"]
    return {**kept, **more}


def quorate(*argv: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command and return what came of it."""
    command = Path(sys.executable).with_name("quorate")
    return subprocess.run(
        [str(command), *argv],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
