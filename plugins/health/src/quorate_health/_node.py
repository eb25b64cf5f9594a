"""The checks that cost next to nothing: disk, memory, log folder, open files, the clock, the store.

Each returns ``None``, or one sentence that names the trouble and the remedy.  What does not live here: how much memory
there is (``_memory``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from quorate.clock import boot_seconds, wall_time_ns
from quorate.errors import StoreUnavailableError

from ._memory import available_memory

if TYPE_CHECKING:
    from quorate.services import AgentView

__all__ = ["Clock", "StoreWatch", "disk", "log_dir", "memory", "open_files"]

_MEGABYTE = 1_000_000
#: How file systems say that they have no files without names: most of the network's, and old kernels.
_NO_NAMELESS_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
#: How long the store is asked for an answer where no limit says so.
_STORE_SECONDS = 5.0
#: From here on people are told that the store is slow, though nobody made that a reason to leave.
_SLOW_STORE_MS = 1000.0


def open_files(least: float) -> str | None:
    """Judge the limit that workers inherit, and that an agent of many workers needs itself."""
    limit = os.sysconf("SC_OPEN_MAX")  # the soft limit of this process; -1: none
    if limit < 0 or limit >= least:
        return None
    return f"a process may open {limit} files, fewer than open_files={least:g}; raise the limit (ulimit -n)"


def memory(least: float) -> str | None:
    """Judge what is left to this process: of the machine's memory, and within the limits of its control groups."""
    available, group = available_memory()
    if available >= least * _MEGABYTE:
        return None
    where = f" of the control group {group}" if group else ""
    return (
        f"{available // _MEGABYTE} MB of memory{where} are free, fewer than memory_free_mb={least:g}; "
        "end other programs, or give this one more"
    )


def log_dir(agent: AgentView) -> str | None:
    """Write one byte where logs and error files will go, into a file that has no name."""
    folder, remedy = _logs(agent)
    place = _existing(folder)
    if not os.path.isdir(place):
        return None  # it cannot even be made: a mistake in the command, and the start of the workers says so better
    try:
        _write_byte(place)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        return f"nothing can be written in {folder}: {problem}; {remedy}"
    return None


def disk(agent: AgentView, least: float) -> str | None:
    """Judge the space where logs go and where programs put their temporary files."""
    for folder, remedy in dict([_logs(agent), _temporary(agent.environment)]).items():
        try:
            room = os.statvfs(_existing(folder))
        except OSError as error:
            return f"{folder} cannot be looked at: {error.strerror}; {remedy}"
        # A file system that reports no size (some network ones) says nothing about its space either.
        free = room.f_bavail * room.f_frsize
        if room.f_blocks and free < least * _MEGABYTE:
            few = f"{free // _MEGABYTE} MB are free in {folder}, fewer than disk_free_mb={least:g}"
            return f"{few}; make room, or {remedy}"
        if room.f_files and not room.f_favail:
            return f"no more files can be made in {folder}: its file system has no free inode; make room, or {remedy}"
    return None


def _logs(agent: AgentView) -> tuple[str, str]:
    folder = agent.snapshot().log_dir
    return (folder, "set --log-dir to another folder") if folder else _temporary(agent.environment)


def _temporary(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the folder for temporary files; ``tempfile``, which also knows, is not worth its import here."""
    folders = [environment.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    return next((folder for folder in folders if os.path.isdir(folder)), "/tmp"), "set TMPDIR to another folder"


def _existing(path: str) -> str:
    """Return ``path``, or of its parents the first that exists; the rest is made when workers are started."""
    path = os.path.abspath(path)
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return path


def _write_byte(folder: str) -> None:
    """Write where it leaves nothing behind, whatever happens to this process."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        path = ""
    except OSError as error:
        if error.errno not in _NO_NAMELESS_FILES:
            raise
        path = os.path.join(folder, f".quorate-{os.getpid()}-{os.urandom(4).hex()}")
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, b"\n")
    finally:
        if path:
            os.unlink(path)
        os.close(descriptor)  # where a full server or a quota may speak up at last


@final
class Clock:
    """Notices that somebody has set the wall clock since this was made.

    What follows is hard to trace back to it: log lines out of order, certificates that are not valid yet.  Time that
    the machine spent suspended is no step, and neither is a correction of the clock's speed.
    """

    def __init__(self) -> None:
        self._offset = self._look()

    @staticmethod
    def _look() -> float:
        return wall_time_ns() / 1e9 - boot_seconds()

    def check(self, most: float) -> str | None:
        """Judge the difference; ``most`` is in seconds."""
        step = self._look() - self._offset
        if abs(step) <= most:
            return None
        return (
            f"the wall clock was set {'forward' if step > 0 else 'back'} by {abs(step):.1f} s since this agent began, "
            f"more than clock_step_s={most:g}; let the time service settle, then start the agent again"
        )


@final
class StoreWatch:
    """Measures the store.  Only a limit that somebody gave makes a slow one this node's trouble.

    For the store may be slow or away for everybody, and the protocol has a patience of its own for that
    (``store_outage_timeout``); a job whose nodes all left because of it would be none the better.
    """

    def __init__(self) -> None:
        self._is_known_slow = False

    def check(self, agent: AgentView, most: float | None) -> str | None:
        """Judge one read; ``most`` is in milliseconds, ``None`` for "tell people, no more"."""
        if most is None and agent.snapshot().phase == "checking":
            return None  # joining is about to find out, and a node that is on its way back has no time for it
        seconds = _STORE_SECONDS if most is None else min(most / 1000, 60.0)
        try:
            latency = agent.store_latency(seconds)
        except StoreUnavailableError:
            found = f"did not answer within {seconds * 1000:.0f} ms"
        else:
            if latency is None or latency * 1000 <= (_SLOW_STORE_MS if most is None else most):
                self._is_known_slow = False
                return None
            found = f"took {latency * 1000:.0f} ms to answer"
        if most is not None:
            return (
                f"the rendezvous store {found}, more than store_latency_ms={most:g}; look at its host and the network"
            )
        if not self._is_known_slow:
            self._is_known_slow = True
            agent.say(f"the rendezvous store {found}; look at its host and the network")
        return None
