"""The agent's own stdout and stderr, as the output of workers reaches them.

A program may have put another stream in place of ``sys.stdout`` (``contextlib.redirect_stdout``, a notebook).  What
passes through the agent goes there then; workers that write straight to the agent's descriptors do not.  What does not
live here: what passes through (``_streams``).
"""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any, final

from ._streams import Console, Sink


@final
class _Text:
    """A stream of text that a program has put in place of its own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        if self._stream is None:
            return
        text = self._decoder.decode(data)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # the program opened a file that takes fewer characters
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (Exception, SystemExit):
            self.close()  # whatever it raises: no worker may wait for it

    def close(self) -> None:
        self._stream = None


def consoles() -> tuple[Console, Console]:
    """Return what is stdout and stderr of this process now."""
    return _console(1, sys.stdout), _console(2, sys.stderr)


def _console(descriptor: int, stream: Any) -> Console:
    if stream is None or _is_same(stream, descriptor):
        return Sink(descriptor)
    return _Text(stream)


def _is_same(stream: Any, descriptor: int) -> bool:
    """Return whether ``stream`` writes where the descriptor leads."""
    try:
        return os.path.sameopenfile(stream.fileno(), descriptor)
    except Exception:
        return False  # it has no descriptor: it is in memory, or a program's own
