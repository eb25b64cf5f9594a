"""The script ``-``: read once from standard input, and kept in a file: each worker reads it, also after a restart.

What does not live here: the launch (``_run``).
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UsageError, remedy_for
from ..files import temporary_folder, write_atomically
from ..notices import warn

_LARGEST_SCRIPT_BYTES = 16 << 20


@contextmanager
def script_of_stdin() -> Iterator[str]:
    """Yield the path of a file with what stands on standard input; the file is gone afterwards.

    Raises:
        UsageError: it cannot be read or kept, or is too large for a script.
    """
    from tempfile import TemporaryDirectory  # a slow import that only this needs

    script = _read()
    try:
        place, problem = temporary_folder(os.environ)
        if problem:
            warn(f"{problem}; {place} is used instead")
        # What cannot be removed changes nothing about the job.
        made = TemporaryDirectory(prefix="quorate_", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from None
    with made as folder:
        path = os.path.join(folder, "stdin.py")
        try:
            write_atomically(path, script)
        except OSError as error:
            raise _no_room(error) from None
        yield path


def _no_room(error: OSError) -> UsageError:
    remedy = remedy_for(error) or "set TMPDIR to a writable folder with room, or run the script from a file"
    return UsageError(f"the script '-' cannot be kept in a temporary file: {error.strerror}; {remedy}")


def _read() -> bytes:
    if sys.stdin is None:  # closed when this process started
        raise UsageError("the script '-' is read from standard input, which is closed; redirect a script to it")
    try:
        script = _read_whole(sys.stdin.fileno(), _LARGEST_SCRIPT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the script '-' cannot be read from standard input: {error.strerror}") from None
    if len(script) > _LARGEST_SCRIPT_BYTES:
        raise UsageError(f"the script '-' has more than {_LARGEST_SCRIPT_BYTES >> 20} MiB; is standard input a script?")
    return script


def _read_whole(descriptor: int, limit: int) -> bytes:
    """Return what comes until the end, at most ``limit`` bytes; a descriptor that does not block is waited for."""
    parts: list[bytes] = []
    while limit > 0:
        try:
            part = os.read(descriptor, min(limit, 1 << 16))
        except BlockingIOError:
            select.select([descriptor], [], [])
            continue
        if not part:
            break
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
