"""Says where the processes of a test stand that did not come to its end: commands, kernel states and Python stacks.

What does not live here: how a test waits (``harness``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from quorate.proc import children_of, state_of

from .harness import command_of, processes_with

__all__ = ["describe"]

_PATIENCE_SECONDS = 20.0


def describe(token: str, hosts: Sequence[int] = ()) -> str:
    """Return a report on every living process that a test has started.

    Arguments:
        token: the test's ``Job.token``, which processes have in their environment that were started by an exec.
        hosts: the test's host processes.  They and the workers that they forked have the fork server's environment.
    """
    found = processes_with(token)
    remaining = list(hosts)
    while remaining:
        pid = remaining.pop()
        found[pid] = command_of(pid)
        remaining += children_of(pid)
    return "\n".join(_describe(pid, command) for pid, command in sorted(found.items()))


def _describe(pid: int, command: str) -> str:
    try:
        waits_in = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return f"process {pid} has ended: {command}"
    return f"process {pid}, state {state_of(pid)}, in {waits_in}: {command}\n{_stacks(pid)}"


def _stacks(pid: int) -> str:
    py_spy = Path(sys.executable).with_name("py-spy")
    try:
        done = subprocess.run(
            [py_spy, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stacks: {error}"
    return done.stdout or done.stderr
