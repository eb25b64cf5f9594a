"""The pipes through which workers reach the watchdog: our own without a name, and the one that torch's client knows.

What does not live here: who reads them (:mod:`._server`).
"""

from __future__ import annotations

import os
from typing import final

__all__ = ["Channel", "ChannelError", "anonymous_channel", "named_channel"]

#: Room for about three thousand messages; where the system grants less, the usual 64 KiB do.
_CAPACITY_BYTES = 1 << 18
_F_SETPIPE_SZ = 1031


class ChannelError(Exception):
    """The pipe cannot be had; the message is a sentence for people."""


@final
class Channel:
    """A pipe that is read here.  ``path`` is what workers open; it never reaches its end, whoever closes it."""

    def __init__(self, reader: int, writer: int, path: str, is_named: bool) -> None:
        """The descriptors become this object's; ``writer`` is -1 where ``reader`` keeps the pipe open by itself."""
        self.reader, self._writer, self.path, self._is_named = reader, writer, path, is_named
        self.inode = os.fstat(reader).st_ino
        _open_channels.add(self)

    def enlarge(self) -> None:
        """Ask for more room than a pipe usually has."""
        import fcntl

        try:
            fcntl.fcntl(self.reader, _F_SETPIPE_SZ, _CAPACITY_BYTES)
        except OSError:
            pass

    def close(self, keep_open: bool = False) -> None:
        """Let go of the pipe (``keep_open``: somebody still reads it), and of its name if that is still ours."""
        if self.reader < 0:
            return
        if self._is_named:
            try:
                if os.stat(self.path).st_ino == self.inode:
                    os.unlink(self.path)
            except OSError:
                pass
        if not keep_open:
            self.disown()

    def disown(self) -> None:
        """Close the descriptors only."""
        _open_channels.discard(self)
        for descriptor in (self.reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)
        self.reader = self._writer = -1


_open_channels: set[Channel] = set()


def _close_in_child() -> None:
    # A forked worker that kept them would keep the pipe alive after its agent.
    for channel in list(_open_channels):
        channel.disown()


os.register_at_fork(after_in_child=_close_in_child)


def anonymous_channel() -> Channel:
    """Return a pipe that leaves nothing behind: processes of the same user find it in /proc."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return Channel(reader, writer, f"/proc/{os.getpid()}/fd/{writer}", False)


def named_channel(path: str) -> Channel:
    """Return the named pipe at ``path``, made if it is not there.

    Raises:
        ChannelError: something else is there, or somebody else listens.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        _refuse_unless_ours(path)
    except OSError as error:
        raise ChannelError(f"the pipe {path} cannot be made: {error.strerror}") from error
    try:
        # Opened for both, a pipe neither waits for writers nor ends when they do.
        reader = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ChannelError(f"the pipe {path} cannot be opened: {error.strerror}") from error
    if not _is_pipe(os.fstat(reader)):
        os.close(reader)
        raise ChannelError(f"{path} is no pipe; it is left alone")
    return Channel(reader, -1, path, True)


def _refuse_unless_ours(path: str) -> None:
    """A pipe that an agent left behind when it was killed is taken over; everything else is not."""
    status = os.lstat(path)
    if not _is_pipe(status):
        raise ChannelError(f"{path} is no pipe; it is left alone")
    if status.st_uid != os.geteuid():
        raise ChannelError(f"the pipe {path} belongs to another user")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return  # nobody listens
    raise ChannelError(f"somebody listens at {path} already; give each agent of a machine a file of its own")


def _is_pipe(status: os.stat_result) -> bool:
    import stat

    return stat.S_ISFIFO(status.st_mode)
