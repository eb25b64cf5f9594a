"""The last lines of a log, cleaned for display.  A worker owns its log: neither file nor content is trusted."""

from __future__ import annotations

import os

from quorate.files import open_regular, read_regular
from quorate.text import printable

_BLOCK_BYTES = 8192
_LONGEST_LINE = 400


def tail_of(path: str, lines: int) -> list[str] | None:
    """Return at most ``lines`` last lines of a regular file; ``None`` if it cannot be read.

    A pipe or a link that a worker has put in its log's place is not opened.
    """
    # One byte more, which tells whether the file has more.
    data = read_regular(path, _BLOCK_BYTES + 1, from_end=True)
    if not data:
        return [] if _is_there(path) else None
    found = data[-_BLOCK_BYTES:].decode(errors="replace").rstrip("\n").split("\n")
    if len(data) > _BLOCK_BYTES and len(found) > 1:
        del found[0]  # its beginning is cut off
    return [clean(line) for line in found[-lines:]]


def _is_there(path: str) -> bool:
    try:
        os.close(open_regular(path))
    except (OSError, ValueError):
        return False
    return True


def clean(line: str, longest: int = _LONGEST_LINE) -> str:
    """Return one line as a terminal would show it, without anything that controls a terminal or a browser."""
    # A progress bar writes over its own line: only what it wrote last is visible.
    return printable(line.rstrip("\r").rpartition("\r")[2], longest)
