"""The program of a node's guardian: waits for the death of its agent, and then writes the agent's last words.

It is run by its path, in an isolated interpreter, and imports no module of quorate until it is needed, or the machine
has had a second to start workers.  It reads frames (a length and a pickle) from a pipe whose other end the agent alone
has: first the agent's ``sys.path`` and the function that writes, then lists of writes, of which the last one counts.
The end of the pipe is the death of the agent.  What does not live here: what is written (:mod:`._last_word`).
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys

_IDLE_SECONDS = 1.0
_LONGEST_SECONDS = 10


def main() -> None:
    """Wait for the end of standard input, then write."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    buffer, write, is_over = b"", None, False
    frames: list[bytes] = []
    while not is_over:
        timeout = _IDLE_SECONDS if write is None and frames else None
        if select.select([0], [], [], timeout)[0]:
            data = os.read(0, 1 << 16)
            is_over, buffer = not data, buffer + data
        elif write is None:
            write = _load(frames[0])
        buffer = take_frames(buffer, frames)
    signal.alarm(_LONGEST_SECONDS)
    writes = pickle.loads(frames[1]) if len(frames) > 1 else []
    if writes:
        (write or _load(frames[0]))(writes)


def take_frames(buffer: bytes, frames: list[bytes]) -> bytes:
    """Move whole frames from ``buffer`` to ``frames``; return the rest.  Beside the first, only the newest is kept."""
    while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
        frames[1 if frames else 0 :] = [buffer[4 : 4 + size]]
        buffer = buffer[4 + size :]
    return buffer


def _load(frame: bytes):  # type: ignore[no-untyped-def] # it is of the plugin's module
    path, function = pickle.loads(frame)
    sys.path[:] = path
    return pickle.loads(function)


if __name__ == "__main__":
    main()
