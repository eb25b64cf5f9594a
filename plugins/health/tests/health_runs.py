"""Runs of quorate on a node that is checked.  No tests."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import sys
from pathlib import Path

DEADLINE = 60.0


UNHEALTHY = 5


def run(
    *flags: str, worker: str = "print('worker ran')", before: str = "", path: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one agent on its own; ``before`` are shell commands, for whose mounts there is a namespace."""
    script = path / "worker.py"
    script.write_text(worker)
    words = [sys.executable, "-m", "quorate", "run", "--standalone", *flags, str(script)]
    command = f"set -e; {before}; exec {shlex.join(words)}" if before else f"exec {shlex.join(words)}"
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", command] if "mount" in before else None
    return subprocess.run(
        shell or ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "TMPDIR": str(path), **environment},
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the sentence with which an agent stayed out of its job."""
    assert done.returncode == UNHEALTHY, done.stdout + done.stderr
    assert "worker ran" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("quorate: error: ")]
    return line.removeprefix("quorate: error: this node does not take part: ")


def wait_for_end(pid: int) -> None:
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ready, _, _ = select.select([watch], [], [], DEADLINE)
    os.close(watch)
    assert ready, f"process {pid} lives on"
