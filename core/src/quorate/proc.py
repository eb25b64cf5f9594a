"""Processes as the kernel shows them: ``/proc``, control groups, descriptors, and death with the parent.

Every question about a process that has ended is answered, never raised.  Fields and files are those of proc(5).
What does not live here: which processes belong to a job, and what is done to them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import final

from attrs import frozen

from .files import read_bytes

__all__ = [
    "ControlGroup",
    "ProcessStat",
    "SignalSets",
    "ancestor_among",
    "children_of",
    "command_of",
    "descendants_of",
    "die_with_parent",
    "environment_of",
    "find_program",
    "forget",
    "hold",
    "is_alive",
    "is_in_foreground",
    "kernel_wait_of",
    "kill_and_reap",
    "memory_groups",
    "open_pidfd",
    "open_signalfd",
    "parent_death_command",
    "peer_of",
    "read_signalfd",
    "release",
    "resident_bytes",
    "send_signal",
    "signals_of",
    "start_time_of",
    "stat_of",
    "state_of",
    "written_bytes",
]

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7)
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_LONGEST_DESCENT = 64
_MOST_DESCENDANTS = 256
_MOST_FRAMES = 6
_SIGNAL_SET_BYTES = 128
_SIGNAL_INFO_BYTES = 128
_STACK_TIMEOUT_SECONDS = 0.5
_ENDED = ("", "Z", "X")


@final
@frozen
class ProcessStat:
    """What ``/proc/PID/stat`` says of a process, as far as anybody here needs it.

    ``cpu_seconds`` is user and system time, that of children which have ended included.  ``start_time`` is in clock
    ticks since boot and tells a process from a later one of the same number.  A process without memory
    (``virtual_bytes`` 0) is about to end, or is a thread of the kernel.  ``start_code`` to ``end_data`` are ``code``,
    all 0 in the midst of an exec.
    """

    state: str
    parent: int
    session: int
    cpu_seconds: float
    start_time: int
    virtual_bytes: int
    code: tuple[int, ...]


def stat_of(pid: int) -> ProcessStat | None:
    """Return the kernel's view of a process, ``None`` if there is no such process."""
    # The command's name stands in parentheses and may hold anything, so the fields are counted from its end.
    fields = read_bytes(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    if len(fields) < 28:
        return None
    return ProcessStat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_seconds=sum(map(int, fields[11:15])) / _TICKS_PER_SECOND,
        start_time=int(fields[19]),
        virtual_bytes=int(fields[20]),
        code=tuple(int(field) for field in fields[23:28]),
    )


def state_of(pid: int) -> str:
    """Return the kernel's one-letter state of a process, ``""`` if there is no such process."""
    stat = stat_of(pid)
    return "" if stat is None else stat.state


def is_alive(pid: int) -> bool:
    """Return whether there is such a process and it has not ended (a zombie has)."""
    return state_of(pid) not in _ENDED


def start_time_of(pid: int) -> int | None:
    """Return what tells a living process from a later one of the same number, ``None`` if it has ended."""
    stat = stat_of(pid)
    return None if stat is None or stat.state in _ENDED else stat.start_time


def environment_of(pid: int) -> bytes:
    """Return the environment that a process was started with (``NAME=value`` joined by NUL), as far as it is told."""
    return read_bytes(f"/proc/{pid}/environ", 16 << 20)


def command_of(pid: int, proc: str = "/proc") -> str:
    """Return the words of a process's command, joined by spaces; ``""`` if it is gone.  They are whatever it says."""
    return read_bytes(f"{proc}/{pid}/cmdline", 4096).replace(b"\0", b" ").decode("utf-8", "replace").strip()


# --- families -------------------------------------------------------------------------------------------------------


def children_of(pid: int) -> set[int]:
    """Return the process ids of the children of all threads of a process."""
    result: set[int] = set()
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return result
    for thread in threads:
        result.update(map(int, read_bytes(f"/proc/{pid}/task/{thread}/children").split()))
    return result


def descendants_of(pid: int, most: int = _MOST_DESCENDANTS) -> list[int]:
    """Return a process and its descendants, parents first, at most ``most`` of them."""
    found: dict[int, None] = {pid: None}
    waiting = [pid]
    while waiting and len(found) < most:
        for child in sorted(children_of(waiting.pop(0)) - found.keys()):
            found[child] = None
            waiting.append(child)
    return list(found)[:most]


def ancestor_among(pid: int, candidates: Collection[int]) -> int | None:
    """Return which of ``candidates`` a living process is, or descends from (its session's leader counts)."""
    try:
        session = os.getsid(pid)
    except OSError:
        return None
    if pid in candidates:
        return pid
    # A worker leads a session; what it started mostly stays there, even once its parents have ended.
    if session in candidates:
        return session
    for _ in range(_LONGEST_DESCENT):
        stat = stat_of(pid)
        if stat is None or pid <= 1:
            return None
        pid = stat.parent
        if pid in candidates:
            return pid
    return None


def resident_bytes(pid: int) -> int | None:
    """Return how much memory of a process is resident, ``None`` if it is gone."""
    fields = read_bytes(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_BYTES if len(fields) > 1 else None


def written_bytes(pid: int) -> int:
    """Return how many bytes a process has written to anything so far, 0 where the kernel does not say."""
    for line in read_bytes(f"/proc/{pid}/io").splitlines():
        if line.startswith(b"wchar:"):
            return int(line.split()[1])
    return 0


@final
@frozen
class ControlGroup:
    """A control group that accounts for memory: its folder, its name in the hierarchy, and cgroups' version (1, 2)."""

    folder: str
    name: str
    version: int


def memory_groups(proc: str = "/proc", mount: str = "/sys/fs/cgroup") -> Iterator[ControlGroup]:
    """Yield the memory groups that this process is in, innermost first (cgroups(7)).

    In a container a name may be as the host sees it; its folder does not exist then, and the root of the mount is the
    container's own group.
    """
    for line in read_bytes(f"{proc}/self/cgroup").decode("utf-8", "replace").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        version = 2 if hierarchy == "0" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        root = mount if version == 2 else f"{mount}/memory"
        name = name.rstrip("/")
        while name:
            yield ControlGroup(root + name, name, version)
            name = name.rpartition("/")[0]
        yield ControlGroup(root, "/", version)


# --- where it waits -------------------------------------------------------------------------------------------------


def kernel_wait_of(pid: int) -> str:
    """Return the kernel's functions in which a process waits, innermost first, as far as this user may know.

    The stack is under a lock that a stuck process may hold itself, so a thread reads it that can be left behind.
    """
    stack: list[bytes] = []
    thread = threading.Thread(
        target=lambda: stack.append(read_bytes(f"/proc/{pid}/stack")), name="quorate-stack", daemon=True
    )
    thread.start()
    thread.join(_STACK_TIMEOUT_SECONDS)
    lines = b"".join(stack).splitlines()
    frames = [line.split()[1].split(b"+")[0] for line in lines if b"+" in line][:_MOST_FRAMES]
    names = [read_bytes(f"/proc/{pid}/wchan").strip(), *frames]
    known = list(dict.fromkeys(name.decode("ascii", "replace") for name in names if name not in (b"", b"0")))
    return " < ".join(known) or "unknown"


def peer_of(sock: socket.socket) -> int:
    """Return the id of the process that has connected a Unix socket, as the kernel knows it (SO_PEERCRED)."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(packed)[0]
    return pid


# --- signals --------------------------------------------------------------------------------------------------------


def open_pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when ``pid`` ends; -1 where the kernel offers none.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return -1


def send_signal(pid: int, pidfd: int, signal_number: int) -> bool:
    """Send a signal by ``pidfd``, or by number where it is -1; return whether it may be sent at all.

    A process that has ended already counts as sent to.
    """
    try:
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signal_number)
        else:
            os.kill(pid, signal_number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def kill_and_reap(pid: int) -> None:
    """Kill a child of this process and reap it; does nothing if ``pid`` is not a child."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises where other code has reaped it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


@final
@frozen
class SignalSets:
    """The signals that a process waits to take, ignores, and has handlers for."""

    pending: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()
    caught: frozenset[int] = frozenset()


def signals_of(pid: int) -> SignalSets:
    """Return how a process deals with signals; all is empty if there is no such process."""
    masks: dict[bytes, int] = {}
    for line in read_bytes(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(b":")
        if name in (b"SigPnd", b"ShdPnd", b"SigIgn", b"SigCgt"):
            masks[name] = int(value, 16)
    pending = masks.get(b"SigPnd", 0) | masks.get(b"ShdPnd", 0)
    return SignalSets(*(_members(mask) for mask in (pending, masks.get(b"SigIgn", 0), masks.get(b"SigCgt", 0))))


def _members(mask: int) -> frozenset[int]:
    return frozenset(number for number in range(1, 65) if mask >> (number - 1) & 1)


def open_signalfd(numbers: Collection[int]) -> int:
    """Return a descriptor from which blocked signals are read with their senders (signalfd(2)); -1 on failure."""
    library = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
    library.sigemptyset(mask)
    for number in numbers:
        library.sigaddset(mask, number)
    descriptor: int = library.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
    return descriptor


def read_signalfd(descriptor: int) -> list[tuple[int, int]]:
    """Return the number and the code (``si_code``) of each signal that waits at ``descriptor``."""
    try:
        data = os.read(descriptor, 64 * _SIGNAL_INFO_BYTES)
    except OSError:
        return []
    starts = range(0, len(data) - _SIGNAL_INFO_BYTES + 1, _SIGNAL_INFO_BYTES)
    return [(number, code) for number, _, code in (struct.unpack_from("=Iii", data, start) for start in starts)]


def is_in_foreground() -> bool:
    """Return whether this process has a terminal whose keys send signals to it."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


# --- descriptors that belong to this process alone ------------------------------------------------------------------

_held: dict[int, Callable[[], object]] = {}


def hold(descriptor: int, close: Callable[[], object] | None = None) -> int:
    """Have every child that this process forks from now on close ``descriptor``; returns it.

    A child that kept it would hide from the other side of a pipe that this process has ended.  Children that exec need
    no such care: Python's descriptors are close-on-exec.

    Arguments:
        descriptor: an open descriptor; a negative one stands for none and is ignored.
        close: how a child closes it, where an object owns it; ``None``: by :func:`os.close`.
    """
    if descriptor >= 0:
        _held[descriptor] = close or (lambda: os.close(descriptor))
    return descriptor


def forget(descriptor: int) -> None:
    """Leave ``descriptor`` to forked children again; does not close it here."""
    _held.pop(descriptor, None)


def release(descriptor: int) -> None:
    """Close a descriptor that is held; one that is not (negative, or closed by a fork already) is left alone."""
    if _held.pop(descriptor, None) is not None:
        os.close(descriptor)


def _close_held() -> None:
    for close in list(_held.values()):
        with suppress(OSError):
            close()
    _held.clear()


os.register_at_fork(after_in_child=_close_held)


# --- death with the parent ------------------------------------------------------------------------------------------


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent's thread ends; return whether ``parent`` is still the parent.

    Called in a forked child; where it returns false the parent has died already and the child should end.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent


@lru_cache(maxsize=4)
def parent_death_command(path: str) -> tuple[str, ...]:
    """Return the words that, put before a command, make the kernel kill it when its parent dies; () where none fit.

    The command setpriv of util-linux sets the parent-death signal and becomes the command.  The setpriv of other tool
    boxes knows no such option and would refuse to run anything, so the program itself is asked for the word.
    ``path`` is the folders to search, separated as in ``PATH``.
    """
    for folder in path.split(os.pathsep):
        program = find_program("setpriv", folder)
        if program and b"pdeathsig" in read_bytes(program):
            return (program, "--pdeathsig", "KILL", "--")
    return ()


def find_program(name: str, path: str) -> str:
    """Return the first executable file called ``name`` in the folders of ``path``, ``""`` if there is none."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder, name)
        if folder and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return ""
