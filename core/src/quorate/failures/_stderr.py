"""From the last lines of a worker's stderr to its exception."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["message_from_stderr"]

_LONGEST_MESSAGE = 2048
# "[rank0]: ", as torch writes before each line of a traceback; "  | ", as Python draws around exception groups.
_PREFIX = re.compile(r"^(?:\[[^\]]{1,64}\]: ?)?(?: *[|+] )*")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+')
_EXCEPTION_LINE = re.compile(r"(?s)^[A-Za-z_][\w.]*(?:: .*)?$")


def message_from_stderr(lines: Sequence[str]) -> str | None:
    """Return the exception line of the last Python traceback in ``lines``, ``None`` if there is no traceback.

    Arguments:
        lines: the last lines of a worker's stderr; the beginning of the traceback may have scrolled out.

    The line is at most 2 KiB.  Tracebacks of ignored exceptions do not count, and prefixes such as ``[rank0]:`` and
    the frames that are drawn around exception groups are left out.
    """
    found: str | None = None
    in_frames = ignored = False
    for raw in lines:
        line = _PREFIX.sub("", raw.rstrip("\r\n"), count=1)
        if line.startswith("Exception ignored in"):
            ignored = True
        elif line.startswith(("Traceback (most recent call last)", "Exception Group Traceback")):
            in_frames = True
        elif line.startswith((" ", "\t")):
            in_frames = in_frames or _FRAME.match(line) is not None
        elif in_frames and line:
            if _EXCEPTION_LINE.match(line) and not ignored:
                found = line[:_LONGEST_MESSAGE]
            in_frames = ignored = False
    return found
