"""The guardian: a small shell that outlives a killed agent just long enough to kill its workers.

It starts before the workers, in a session of its own, and blocks in reading a pipe whose write end only the agent
holds.  When that end closes, however the agent died, it kills the sessions under guard and every process that carries
the context's marker in its environment, until none is left.  A context that closes in an orderly way kills its
guardian first.

A session is taken out of guard before its number can pass to another process.  What the guardian cannot know is the
session of a worker that was started in the instant of the agent's death: of such a worker's descendants it finds those
that kept the marker.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import final

from quorate.notices import warn
from quorate.proc import hold, kill_and_reap, release

# "+ N" puts session N under guard, "- N" takes it out.  Only the tools grep and sleep are needed besides the shell, and
# only once the agent has died.  The last loop looks again every 20 ms for at most five seconds: a shell cannot wait for
# processes that are not its children.  In the midst of an exec a process has no environment to be known by, nor yet the
# bounds of its code (field 26 of proc_pid_stat(5), the 24th counted from the state on; a process that has memory, field
# 23, is not a thread of the kernel).  So it ends once it has found nothing three times in a row, and no exec.
_SCRIPT = r"""
trap '' HUP INT QUIT TERM PIPE
groups=" "
while read -r sign number; do
    case $sign in
        +) groups="$groups$number " ;;
        -) case $groups in
               *" $number "*) groups="${groups%% "$number" *} ${groups#* "$number" }" ;;
           esac ;;
    esac
done
marker=$1
round=0
clean=0
while [ "$round" -lt 250 ]; do
    left=
    if [ "$round" -eq 0 ]; then
        for group in $groups; do kill -s KILL -- "-$group"; done
    fi
    for path in /proc/[0-9]*/stat; do
        read -r line <"$path" || continue
        set -- ${line##*) }
        [ -n "$4" ] || continue
        if [ "${24}" = 0 ] && [ "${21}" != 0 ]; then left=1; fi
        case "$groups" in
            *" $4 "*)
                case $1 in
                    [ZX]) ;;
                    *) pid=${path#/proc/}; kill -KILL "${pid%/stat}" && left=1 ;;
                esac ;;
        esac
    done
    for path in $(grep -lsF -e "$marker" /proc/[0-9]*/environ); do
        pid=${path#/proc/}
        kill -KILL "${pid%/environ}" && left=1
    done
    if [ -n "$left" ]; then clean=0; else clean=$((clean + 1)); fi
    [ "$clean" -lt 3 ] || exit 0
    sleep 0.02
    round=$((round + 1))
done
"""


@final
class Guardian:
    """A running guardian; ``marker`` is what every process of this context has in its environment.

    Where no shell can be started, a warning is all that happens: workers then die by the kernel's parent-death
    signal alone, and what they started may live on.

    Raises:
        OSError: there is no descriptor left for its pipe.
    """

    def __init__(self, marker: str) -> None:
        self._pid, self._write_end = 0, -1
        read_end, write_end = os.pipe()
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/bin"))
        try:
            self._pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _SCRIPT, "quorate-guardian", marker],
                {"PATH": path, "LC_ALL": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
            self._write_end = hold(write_end)
        except OSError as error:
            os.close(write_end)
            warn(
                f"/bin/sh could not be started ({error.strerror}): if this agent is killed, processes may be left over"
            )
        finally:
            os.close(read_end)

    def watch(self, session: int) -> None:
        """Put the session (and process group) of a worker under guard."""
        self._write(b"+ %d\n" % session)

    def forget(self, session: int) -> None:
        """Take a session out of guard: its number may soon be another process's."""
        self._write(b"- %d\n" % session)

    def _write(self, line: bytes) -> None:
        if self._write_end >= 0:
            with suppress(OSError):  # the guardian has been killed; the parent-death signal remains
                os.write(self._write_end, line)

    def close(self) -> None:
        """End and reap the guardian without killing anything."""
        if self._pid:
            kill_and_reap(self._pid)  # before its pipe closes: at the end of the pipe it would act
            self._pid = 0
        release(self._write_end)
        self._write_end = -1
