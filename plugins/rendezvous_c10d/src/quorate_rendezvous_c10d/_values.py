"""How keys and values are written into a TCPStore, for whoever reads one.

What does not live here: the store contract (:mod:`._store`).
"""

from __future__ import annotations

from typing import Any

__all__ = ["ABSENT", "STAMPED", "STAMP_BYTES", "prefix_of", "read_one", "strip"]

#: What compare-and-set is told to expect when a key shall be read and not written.  Nobody ever writes it.
ABSENT = b"\x00absent"
#: The first byte of a stamp; counters begin with a digit.
STAMPED = b"\x01"
STAMP_BYTES = 17


def prefix_of(run_id: str) -> str:
    """Return what a job's keys begin with.  Escaped, no run's keys begin with another's prefix."""
    return f"quorate/{run_id.replace('%', '%25').replace('/', '%2F')}/"


def read_one(store: Any, key: str) -> bytes | None:
    """Return the value of ``key``, ``None`` where it is absent.  Never waits for it."""
    value = bytes(store.compare_set(key, ABSENT, ABSENT))
    return None if value == ABSENT else strip(value)


def strip(value: bytes) -> bytes:
    """Return a value without its stamp."""
    return value[STAMP_BYTES:] if value.startswith(STAMPED) and len(value) >= STAMP_BYTES else value
