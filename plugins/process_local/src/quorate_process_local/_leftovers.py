"""Finds what a context's workers started, wherever it moved: by session, and by the marker in its environment.

Only finds, identifies and signals; when to do so is the context's business.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from time import monotonic, sleep
from typing import final

from ._fds import open_pidfd, release

__all__ = ["MARKER_VARIABLE", "Leftover", "find_leftovers", "kernel_wait_of", "marker_of", "state_of"]

#: Holds one ``<context>.<local rank>.`` per context that a process descends from, outermost first.
MARKER_VARIABLE = "QUORATE_CONTEXT"

_EXEC_PATIENCE_SECONDS = 5.0
_MOST_FRAMES = 6
_STACK_PATIENCE_SECONDS = 0.5
# Fields of /proc/<pid>/stat (proc_pid_stat(5)), counted from the state on.
_MEMORY, _START_CODE, _SIGNALS = 20, 23, 28


def marker_of(context_id: str, local_rank: int, environment: Mapping[str, str]) -> str:
    """Return the value of the marker variable for a worker; markers of enclosing contexts stay in it."""
    return f"{environment.get(MARKER_VARIABLE, '')}{context_id}.{local_rank}."


@final
class Leftover:
    """A process that a worker left behind.  ``pidfd`` is -1 where the kernel offers none."""

    __slots__ = ("local_rank", "pid", "pidfd", "session")

    def __init__(self, pid: int, local_rank: int, pidfd: int, session: int) -> None:
        self.pid, self.local_rank, self.pidfd, self.session = pid, local_rank, pidfd, session

    def send(self, signal_number: int) -> bool:
        """Send a signal; return whether it may be sent at all (false: another user's process)."""
        try:
            if self.pidfd >= 0:
                from signal import pidfd_send_signal

                pidfd_send_signal(self.pidfd, signal_number)
            else:
                os.kill(self.pid, signal_number)
        except ProcessLookupError:
            pass
        except PermissionError:
            return False
        return True

    def is_gone(self) -> bool:
        """Return whether it has ended, where no pidfd can tell."""
        return state_of(self.pid) in ("", "Z", "X")

    def release(self) -> None:
        """Close its pidfd, and reap it where this process is the one that orphans go to."""
        release(self.pidfd)
        self.pidfd = -1
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass


def find_leftovers(context_id: str, sessions: Mapping[int, int], known: Collection[int]) -> Iterator[Leftover]:
    """Yield the living processes of a context that are not in ``known``.

    Arguments:
        context_id: unique to the context; part of the marker.
        sessions: session id -> local rank of the sessions that are still ours for certain.
        known: process ids to leave out (the workers themselves, leftovers found before).
    """
    needle = f"{context_id}.".encode()
    give_up_at = monotonic() + _EXEC_PATIENCE_SECONDS
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in known:
            continue
        pid = int(name)
        local_rank = _belongs(pid, needle, sessions, give_up_at)
        if local_rank is None:
            continue
        try:
            pidfd = open_pidfd(pid)
        except ProcessLookupError:
            continue
        # Looked at again: before the pidfd was opened the number could have changed hands.
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            session = 0
        if not session or _belongs(pid, needle, sessions, give_up_at) is None:
            release(pidfd)
            continue
        yield Leftover(pid, local_rank, pidfd, session)


def _belongs(pid: int, needle: bytes, sessions: Mapping[int, int], give_up_at: float) -> int | None:
    """Return the local rank that ``pid`` descends from, ``None`` if it is a stranger or has ended."""
    try:
        session = os.getsid(pid)
    except OSError:
        return None
    if not session:
        return None  # a thread of the kernel: a worker leads a session, and what it starts is in one, too
    if session in sessions:
        return sessions[session] if state_of(pid) not in ("", "Z", "X") else None
    environment = _read(f"/proc/{pid}/environ") or _environment_after_exec(pid, give_up_at)
    start = environment.find(needle)
    if start < 0:
        return None
    digits = environment[start + len(needle) : start + len(needle) + 10].split(b".", 1)[0]
    return int(digits) if digits.isdigit() else None


def _environment_after_exec(pid: int, give_up_at: float) -> bytes:
    """Return the environment of a process that showed none: in the midst of an exec it has none yet.

    The kernel maps the new program's memory first, then its arguments, then its environment, and sets the bounds of its
    code last, so these tell an exec from a process without an environment; what has no memory at all is about to end,
    or a thread of the kernel.  An exec takes far less than a millisecond, but on a busy machine the process may wait
    long for its turn in it; nothing can be waited for, so this looks again until ``give_up_at`` (monotonic seconds).
    """
    while True:
        before = _fields(pid)
        if not before or before[_MEMORY] == b"0":
            return b""
        environment = _read(f"/proc/{pid}/environ")
        if environment:
            return environment
        if before[_START_CODE] == b"0":
            if monotonic() >= give_up_at:
                return b""
            sleep(0.001)
        elif _fields(pid)[_START_CODE:_SIGNALS] == before[_START_CODE:_SIGNALS]:
            return b""  # the same program before and after the look


def _fields(pid: int) -> list[bytes]:
    """Return what /proc/<pid>/stat says after the command's name; nothing if there is no such process."""
    return _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def state_of(pid: int) -> str:
    """Return the kernel's one-letter state of a process, ``""`` if there is none."""
    return _read(f"/proc/{pid}/stat").rpartition(b") ")[2][:1].decode()


def kernel_wait_of(pid: int) -> str:
    """Return in which of the kernel's functions a process waits, innermost first, as far as this user may know.

    The stack is under a lock that a stuck process may hold itself, so it is asked for on a thread that can be left.
    """
    import threading

    stack: list[bytes] = []
    thread = threading.Thread(
        target=lambda: stack.append(_read(f"/proc/{pid}/stack")), name="quorate-stack", daemon=True
    )
    thread.start()
    thread.join(_STACK_PATIENCE_SECONDS)
    lines = b"".join(stack).splitlines()
    frames = [line.split()[1].split(b"+")[0] for line in lines if b"+" in line][:_MOST_FRAMES]
    names = [_read(f"/proc/{pid}/wchan").strip(), *frames]
    known = list(dict.fromkeys(name.decode("ascii", "replace") for name in names if name not in (b"", b"0")))
    return " < ".join(known) or "unknown"


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""  # it ended while we read, or belongs to another user
    finally:
        os.close(descriptor)
