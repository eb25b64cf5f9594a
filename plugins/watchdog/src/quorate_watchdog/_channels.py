"""The pipes through which workers reach the watchdog: a pipe without a name, and the named one of torch's client.

What does not live here: who reads them (:mod:`._server`).
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from typing import final

from quorate.proc import hold, release

#: Room for about three thousand messages; where the system grants less, the usual 64 KiB do.
_CAPACITY_BYTES = 1 << 18


class ChannelError(Exception):
    """The pipe cannot be used; the message is a sentence for people."""


@final
class Channel:
    """A pipe that is read here.  ``path`` is what workers open; no end of file is ever read from it.

    Arguments:
        reader: a descriptor, owned by this object from now on.
        writer: a descriptor, owned by this object too; -1 where ``reader`` keeps the pipe open by itself.
        path: the path that workers open.
        is_named: whether ``path`` is a named pipe, to be removed at the end.
    """

    def __init__(self, reader: int, writer: int, path: str, is_named: bool) -> None:
        self.reader, self._writer, self.path, self._is_named = reader, writer, path, is_named
        self.inode = os.fstat(reader).st_ino
        for descriptor in (reader, writer):
            if descriptor >= 0:
                hold(descriptor)  # a forked worker that kept one would keep the pipe open after the agent's end

    def enlarge(self) -> None:
        """Ask for more room than a pipe usually has."""
        with suppress(OSError):
            fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, _CAPACITY_BYTES)

    def close(self, keep_open: bool = False) -> None:
        """Remove the pipe's name if it is still this pipe's, and close the pipe unless ``keep_open``."""
        if self.reader < 0:
            return
        if self._is_named:
            with suppress(OSError):
                if os.stat(self.path).st_ino == self.inode:
                    os.unlink(self.path)
        if not keep_open:
            self.close_descriptors()

    def close_descriptors(self) -> None:
        """Close the pipe and leave its name."""
        release(self.reader)
        release(self._writer)
        self.reader = self._writer = -1


def anonymous_channel() -> Channel:
    """Return a pipe that leaves nothing behind; processes of the same user open it through /proc."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return Channel(reader, writer, f"/proc/{os.getpid()}/fd/{writer}", False)


def named_channel(path: str) -> Channel:
    """Return the named pipe at ``path``, made if it is not there.

    Raises:
        ChannelError: something else is there, or another process reads the pipe.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        _check_abandoned(path)
    except OSError as error:
        raise ChannelError(f"the pipe {path} cannot be made: {error.strerror}") from error
    try:
        # Opened for both, a pipe neither waits for writers nor ends when they do.
        reader = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ChannelError(f"the pipe {path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISFIFO(os.fstat(reader).st_mode):
        os.close(reader)
        raise ChannelError(f"{path} is not a pipe; it is left alone")
    return Channel(reader, -1, path, True)


def _check_abandoned(path: str) -> None:
    """Accept only a pipe that an agent of this user left behind when it was killed.

    Raises:
        ChannelError: it is anything else.
    """
    status = os.lstat(path)
    if not stat.S_ISFIFO(status.st_mode):
        raise ChannelError(f"{path} is not a pipe; it is left alone")
    if status.st_uid != os.geteuid():
        raise ChannelError(f"the pipe {path} belongs to another user")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return  # no process reads it
    raise ChannelError(f"another process reads the pipe {path}; give each agent of a machine a file of its own")
