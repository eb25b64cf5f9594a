"""Finds what a context's workers started, wherever it moved: by session, and by the marker in its environment.

What does not live here: when leftovers are searched and signalled (:mod:`._sweep`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import final

from attrs import define

from quorate.clock import monotonic, sleep
from quorate.proc import environment_of, hold, is_alive, open_pidfd, release, send_signal, stat_of

#: Holds one ``<context>.<local rank>.`` per context that a process descends from, outermost first.
MARKER_VARIABLE = "QUORATE_CONTEXT"

_EXEC_TIMEOUT_SECONDS = 5.0
#: How long to follow processes that start others and end, faster than all of them can be looked at.
_FOLLOW_SECONDS = 0.25


def marker_of(context_id: str, local_rank: int, environment: Mapping[str, str]) -> str:
    """Return the value of the marker variable for a worker; markers of enclosing contexts stay in it."""
    return f"{environment.get(MARKER_VARIABLE, '')}{context_id}.{local_rank}."


@final
@define(eq=False)
class Leftover:
    """A process that a worker left behind.  ``pidfd`` is -1 where the kernel offers none."""

    pid: int
    local_rank: int
    pidfd: int
    session: int

    def send(self, signal_number: int) -> bool:
        """Send a signal; return whether it may be sent at all (false: another user's process)."""
        return send_signal(self.pid, self.pidfd, signal_number)

    def is_gone(self) -> bool:
        """Return whether it has ended, where no pidfd can tell."""
        return not is_alive(self.pid)

    def release(self) -> None:
        """Close its pidfd, and reap it where this process is the one that orphans go to."""
        release(self.pidfd)
        self.pidfd = -1
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def find_leftovers(context_id: str, sessions: Mapping[int, int], known: Collection[int]) -> Iterator[Leftover]:
    """Yield the living processes of a context that are not in ``known``.

    Arguments:
        context_id: unique to the context; part of the marker.
        sessions: session id -> local rank of the sessions whose number is certain to be a worker's.
        known: process ids to leave out (the workers themselves, leftovers found before).

    Raises:
        OSError: there is no descriptor left to look.
    """
    needle = f"{context_id}.".encode()
    now = monotonic()
    give_up_at = now + _EXEC_TIMEOUT_SECONDS
    for pid in _processes(now + _FOLLOW_SECONDS):
        if pid in known:
            continue
        local_rank = _local_rank_of(pid, needle, sessions, give_up_at)
        if local_rank is None:
            continue
        try:
            pidfd = hold(open_pidfd(pid))
        except ProcessLookupError:
            continue
        # Looked at again: before the pidfd was opened the number could have passed to another process.
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            session = 0
        if not session or _local_rank_of(pid, needle, sessions, give_up_at) is None:
            release(pidfd)
            continue
        yield Leftover(pid, local_rank, pidfd, session)


def _processes(follow_until: float) -> Iterator[int]:
    """Yield the ids of all processes, those that are started in the meantime included, at most until ``follow_until``.

    A process that is passed on from parent to child (each ends once it has started the next) is not there any more when
    its turn comes in a list of all processes.  The lists that follow hold only what is new, so its child is looked at
    while it lives.
    """
    seen: set[str] = set()
    while new := [name for name in os.listdir("/proc") if name.isdigit() and name not in seen]:
        seen.update(new)
        yield from map(int, new)
        if monotonic() >= follow_until:
            return


def _local_rank_of(pid: int, needle: bytes, sessions: Mapping[int, int], give_up_at: float) -> int | None:
    """Return the local rank that ``pid`` descends from, ``None`` if it belongs to no worker or has ended."""
    try:
        session = os.getsid(pid)
    except OSError:
        return None
    if not session:
        return None  # a thread of the kernel: a worker leads a session, and what it starts is in one, too
    if session in sessions:
        return sessions[session] if is_alive(pid) else None
    environment = environment_of(pid) or _environment_after_exec(pid, give_up_at)
    start = environment.find(needle)
    if start < 0:
        return None
    digits = environment[start + len(needle) : start + len(needle) + 10].split(b".", 1)[0]
    return int(digits) if digits.isdigit() else None


def _environment_after_exec(pid: int, give_up_at: float) -> bytes:
    """Return the environment of a process that showed none: in the midst of an exec it has none yet.

    The kernel maps the new program's memory first, then its arguments, then its environment, and sets the bounds of its
    code last.  So these tell an exec from a process without an environment; a process without memory is about to end,
    or is a thread of the kernel.  An exec takes far less than a millisecond, but on a busy machine the process may be
    delayed in it; no event signals its end, so this looks again until ``give_up_at`` (monotonic seconds).
    """
    while True:
        before = stat_of(pid)
        if before is None or before.virtual_bytes == 0:
            return b""
        environment = environment_of(pid)
        if environment:
            return environment
        if before.code[0] == 0:
            if monotonic() >= give_up_at:
                return b""
            sleep(0.001)
        else:
            after = stat_of(pid)
            if after is None or after.code == before.code:
                return b""  # the same program before and after the look
