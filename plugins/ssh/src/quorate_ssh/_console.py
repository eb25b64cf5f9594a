"""The output of all hosts on this machine's console, each line with its host and rank.

Workers' lines arrive with ``[host rank]`` already, which their agent puts there; others, such as the agent's own, get
their host's name here.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import final


def prefix_template(host: str) -> str:
    """Return the template (``docs/logs.md``) with which an agent marks its workers' lines."""
    return f"[{host.replace('$', '$$')} ${{rank}}] "


@final
class Console:
    """Writes whole lines; a stream that cannot be written is given up in silence, as everywhere in quorate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def write_output(self, host: str, line: bytes) -> None:
        """Write a line of a host's standard output."""
        self._write(sys.stdout.fileno(), host, line)

    def write_error(self, host: str, line: bytes) -> None:
        """Write a line of a host's standard error."""
        self._write(sys.stderr.fileno(), host, line)

    def _write(self, descriptor: int, host: str, line: bytes) -> None:
        if not line.startswith(f"[{host} ".encode()):
            line = f"[{host}] ".encode() + line
        if not line.endswith(b"\n"):
            line += b"\n"
        with self._lock, suppress(OSError):
            while line:
                line = line[os.write(descriptor, line) :]
