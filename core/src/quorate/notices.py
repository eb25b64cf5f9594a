"""The one place where the core and its plugins write to the console.

Nothing here raises: a stream that is closed, full or broken changes neither what runs nor the exit code.  Nothing that
steers a terminal is written, wherever the text came from (workers, peers, plugins).  What does not live here: what
workers write, and what goes into results, events and the job's record.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from .text import printable_lines

__all__ = ["LONGEST_LINE", "flush", "note", "open_missing_streams", "warn", "write_error", "write_output"]


#: In characters; longer texts belong into a file.
LONGEST_LINE = 4096

#: What streams raise that cannot be written, those included that a program has put in the place of Python's.  Not every
#: exception: a program's signal handler may raise one while a line is being written.
_BROKEN = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def warn(sentence: str) -> None:
    """Write ``quorate: warning: …`` to standard error; long lines are cut."""
    write_error(printable_lines(f"quorate: warning: {sentence}", LONGEST_LINE))


def note(sentence: str) -> None:
    """Write ``quorate: note: …`` to standard error; long lines are cut."""
    write_error(printable_lines(f"quorate: note: {sentence}", LONGEST_LINE))


def write_error(text: str) -> None:
    """Write ``text`` and the end of its line to standard error."""
    _write(sys.stderr, printable_lines(text))


def write_output(text: str) -> None:
    """Write ``text`` and the end of its line to standard output."""
    _write(sys.stdout, printable_lines(text))


def flush() -> None:
    """Flush both streams; what cannot be written is dropped."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(*_BROKEN):
            stream.flush()


def open_missing_streams() -> None:
    """Open ``/dev/null`` in the place of standard streams that are closed (``2>&-``).

    Else the next file or socket of this process would get the number of the stream, and workers would write into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(descriptor, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - it stays open
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - it stays open


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:
        return
    with suppress(*_BROKEN):
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
