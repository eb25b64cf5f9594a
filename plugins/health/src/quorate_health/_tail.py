"""The last lines of a log, cleaned for display.  A worker owns its log: neither file nor content is trusted."""

from __future__ import annotations

import os
import re
import stat

__all__ = ["clean", "tail_of"]

_BLOCK_BYTES = 8192
_LONGEST_LINE = 400
#: Terminal control sequences: CSI with parameters, OSC up to its end, and the two-byte ones.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")


def tail_of(path: str, lines: int) -> list[str] | None:
    """Return at most ``lines`` last lines of a regular file; ``None`` if it cannot be read.

    A pipe or a link that a worker has put in its log's place is not opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        begin = max(0, status.st_size - _BLOCK_BYTES)
        data = os.pread(descriptor, _BLOCK_BYTES, begin)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    found = data.decode(errors="replace").rstrip("\n").split("\n")
    if begin and len(found) > 1:
        del found[0]  # its beginning is cut off
    return [clean(line) for line in found[-lines:]] if data else []


def clean(line: str, longest: int = _LONGEST_LINE) -> str:
    """Return one line as a terminal would show it, without anything that controls a terminal or a browser."""
    # A progress bar writes over its own line: only what it wrote last is visible.
    line = line.rstrip("\r").rpartition("\r")[2]
    line = _CONTROL.sub("", line).expandtabs(4)
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
