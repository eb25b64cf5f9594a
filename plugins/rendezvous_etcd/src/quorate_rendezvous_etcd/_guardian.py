"""A shell process that kills the etcd members of a killed owner and removes their data.

It reads a pipe whose write end only the owner holds.  The end of the pipe means that the owner has died: the shell then
cleans up and ends.  What does not live here: the members (:mod:`._server`).
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import final

from quorate.net import close_in_children

# "? 0" says that a process is about to be started, "+ PID" adds it, "- PID" removes it.  etcd has no children, so its
# process id is enough.  (Not every shell can kill a group.)  If the owner is killed while it starts a process, that one
# is found by the mark in its environment.
_SCRIPT = r"""
trap '' HUP INT QUIT TERM PIPE
folder=$1 outlive=$2 mark=$3
members=" "
while read -r sign pid; do
    is_starting=
    case $sign in
        "?") is_starting=1 ;;
        +) members="$members$pid " ;;
        -) members="${members%% "$pid" *} ${members#* "$pid" }" ;;
    esac
done
wait_for_members() {
    round=0
    while [ "$round" -lt "$1" ]; do
        alive=
        for pid in $members; do kill -0 "$pid" && alive=1; done
        [ -n "$alive" ] || return
        sleep 0.1
        round=$((round + 1))
    done
}
find_member() {
    round=0
    while [ "$round" -lt 20 ]; do
        for file in $(grep -alF -e "$mark" /proc/[0-9]*/environ); do
            pid=${file#/proc/}
            pid=${pid%/environ}
            kill -0 "$pid" && members="$members$pid " && return
        done
        sleep 0.1
        round=$((round + 1))
    done
}
[ -z "$is_starting" ] || find_member
if [ "$outlive" != 0 ]; then
    wait_for_members "$outlive"
    for pid in $members; do kill -TERM "$pid"; done
    wait_for_members 20
fi
for pid in $members; do kill -KILL "$pid"; done
rm -rf -- "$folder"
"""


@final
class Guardian:
    """A running guardian of the members that are added, and of the folder ``folder`` (``""``: of none).

    The members are started with ``environment`` besides other variables.  With ``outlive_seconds`` they have so long to
    end by themselves, and then get SIGTERM and two seconds.
    """

    def __init__(self, folder: str, outlive_seconds: float = 0.0) -> None:
        name, value = "QUORATE_ETCD_GUARDIAN", os.urandom(16).hex()
        self.environment = {name: value}
        mark = f"{name}={value}"
        tenths = str(round(outlive_seconds * 10))
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/bin"))
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "quorate-etcd-guardian", folder, tenths, mark],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": path, "LC_ALL": "C"},
            start_new_session=True,
        )
        close_in_children(self)

    @property
    def pid(self) -> int:
        """The shell's process id."""
        return self._process.pid

    def expect(self) -> None:
        """Expect a member, which is about to be started."""
        self._send("? 0\n")

    def add(self, pid: int) -> None:
        """Add the member that was expected."""
        self._send(f"+ {pid}\n")

    def remove(self, pid: int) -> None:
        """Remove a member that has ended: another process may get its process id.  0: the one that was expected."""
        self._send(f"- {pid}\n")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the guardian was killed; an orderly stop does not need it
            self._process.stdin.write(line.encode())

    def close_after_fork(self) -> None:
        """Close a forked child's copy of the pipe, which would hide the owner's death."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """End and reap the guardian; the members run on."""
        # SIGKILL first: the guardian must not see the end of its pipe.
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
