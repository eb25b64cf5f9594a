"""How keys and values are written into a TCPStore, for all that read one.

What does not live here: the store contract (:mod:`._store`).
"""

from __future__ import annotations

import os
from typing import Any

#: What compare-and-set is given to expect when a key shall be read and not written.  It is never written.
ABSENT = b"\x00absent"
#: The first byte of a stamp; counters begin with a digit.
STAMPED = b"\x01"
STAMP_BYTES = 17
# Made once in a store's life: a client that finds another value there is talking to another store.
IDENTITY_KEY = "quorate#identity"


def prefix_of(run_id: str) -> str:
    """Return what a job's keys begin with.  Escaped, no run's keys begin with another's prefix."""
    return f"quorate/{run_id.replace('%', '%25').replace('/', '%2F')}/"


def identify(store: Any) -> bytes:
    """Return what tells ``store`` from every other one; the first caller makes it.  Raises RuntimeError."""
    return bytes(store.compare_set(IDENTITY_KEY, b"", os.urandom(16).hex().encode()))


def read_identity(store: Any) -> bytes:
    """As :func:`identify`, and writes nothing where the server has no name yet.  Raises RuntimeError."""
    return bytes(store.compare_set(IDENTITY_KEY, ABSENT, ABSENT))


def read_one(store: Any, key: str) -> bytes | None:
    """Return the value of ``key``, ``None`` where it is absent.  Never waits for it."""
    value = bytes(store.compare_set(key, ABSENT, ABSENT))
    return None if value == ABSENT else strip(value)


def strip(value: bytes) -> bytes:
    """Return a value without its stamp."""
    return value[STAMP_BYTES:] if value.startswith(STAMPED) and len(value) >= STAMP_BYTES else value


def first_line(error: BaseException) -> str:
    """Return what torch says of an error, without the stack trace that follows it."""
    return str(error).partition("\n")[0].strip()[:200]
