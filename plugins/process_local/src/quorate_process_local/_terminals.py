"""Terminals for workers: what a worker writes to one is read by the pump, and the worker sees that it is a terminal.

What does not live here: which streams get one (:mod:`._streams`).
"""

from __future__ import annotations

import fcntl
import os
import termios

from quorate.proc import hold

_OFLAG, _LFLAG = 1, 3
_SIZE_BYTES = 8


def are_one_terminal(first: int, second: int) -> bool:
    """Return whether two descriptors are the same terminal."""
    try:
        return os.isatty(first) and os.isatty(second) and os.fstat(first).st_rdev == os.fstat(second).st_rdev
    except OSError:
        return False


def open_terminal(like: int) -> tuple[int, int]:
    """Return the reading end and the worker's end of a terminal as large as ``like``.

    The reading end is held and does not block.  The terminal passes on what is written as it is: the real one changes
    line ends, not this one.

    Raises:
        OSError: the system has no terminal left.
    """
    read_end, worker_end = os.openpty()
    try:
        attributes = termios.tcgetattr(worker_end)
        attributes[_OFLAG] &= ~termios.OPOST
        attributes[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
        termios.tcsetattr(worker_end, termios.TCSANOW, attributes)
        os.set_blocking(read_end, False)
        follow_size(read_end, like)
    except (OSError, termios.error) as error:
        os.close(read_end)
        os.close(worker_end)
        raise OSError(*error.args) from error
    return hold(read_end), worker_end


def follow_size(terminal: int, like: int) -> None:
    """Make a terminal as large as ``like`` is now."""
    try:
        size = fcntl.ioctl(like, termios.TIOCGWINSZ, bytes(_SIZE_BYTES))
        if fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(_SIZE_BYTES)) != size:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    except OSError:
        pass  # it is gone, or was never one
