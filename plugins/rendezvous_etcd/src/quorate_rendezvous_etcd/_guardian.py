"""A tiny shell that outlives a killed owner for just long enough to kill its etcd members and remove their data.

It blocks reading a pipe whose write end only the owner holds.  When that end closes without a farewell, however the
owner died, it acts and ends.  What does not live here: the members (:mod:`._server`).
"""

from __future__ import annotations

import os
import subprocess
from typing import final

__all__ = ["Guardian"]

# "+ PID" puts a process under guard, "- PID" takes it out.  etcd has no children, so its own number is enough (and not
# every shell can kill a group).
_SCRIPT = r"""
trap '' HUP INT QUIT TERM PIPE
members=" "
while read -r sign pid; do
    case $sign in
        +) members="$members$pid " ;;
        -) members="${members%% "$pid" *} ${members#* "$pid" }" ;;
    esac
done
for pid in $members; do kill -KILL "$pid"; done
rm -rf -- "$1"
"""


@final
class Guardian:
    """A running guardian of the members that it is told of, and of the folder ``folder``."""

    def __init__(self, folder: str) -> None:
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/bin"))
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "quorate-etcd-guardian", folder],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": path, "LC_ALL": "C"},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The shell's process id."""
        return self._process.pid

    def watch(self, pid: int) -> None:
        """Put a member under guard."""
        self._tell(f"+ {pid}\n")

    def forget(self, pid: int) -> None:
        """Take a member out again, once it is dead and its number may go to somebody else."""
        self._tell(f"- {pid}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except OSError:
            pass  # somebody has killed the guardian; an orderly stop does not need it

    def close_after_fork(self) -> None:
        """Close a forked child's copy of the pipe: while the child lived it would hide the owner's death."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """End and reap the guardian without a harm to anyone."""
        # SIGKILL, not a farewell: it must not see the end of its pipe first.
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
