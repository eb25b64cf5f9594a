"""Counters in etcd's API v2: a directory with one entry for each addition, in the order in which etcd took them.

API v2 cannot add, and a compare-and-swap makes nodes that count at the same moment retry against each other: a thousand
of them took 25 requests each, and eight times as long as this.  Here each posts its addition once (etcd names the
entries in order), and then reads where it came in.  An addition that was posted twice, because an answer got lost, has
the same stamp twice; the first one counts.

Pure functions; nothing here talks to etcd.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quorate.errors import StoreCorruptError

__all__ = ["count_at", "is_counter", "pack_addition", "total"]

_KIND = "c1"


def pack_addition(amount: int, stamp: str) -> str:
    """Return the text that is posted."""
    return f"{_KIND}:{amount}:{stamp}"


def is_counter(node: Mapping[str, Any]) -> bool:
    """Whether etcd's ``node``, read with its children, is a counter, and not something else's directory."""
    return bool(node.get("dir") and node.get("nodes"))


def total(node: Mapping[str, Any]) -> int:
    """Return the count of the counter ``node``.  Raises StoreCorruptError."""
    return sum(amount for amount, _ in _additions(node))


def count_at(node: Mapping[str, Any], stamp: str) -> int | None:
    """Return what the count was right after the addition ``stamp``; ``None`` if that is not there."""
    count = 0
    for amount, its_stamp in _additions(node):
        count += amount
        if its_stamp == stamp:
            return count
    return None


def _additions(node: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield the amount and the stamp of each addition in order, each once."""
    entries: Iterable[Mapping[str, Any]] = node.get("nodes") or ()
    seen: set[str] = set()
    for entry in sorted(entries, key=lambda entry: int(entry["createdIndex"])):
        kind, _, rest = str(entry.get("value", "")).partition(":")
        amount, colon, stamp = rest.partition(":")
        if kind != _KIND or not colon or not amount.removeprefix("-").isdecimal():
            raise StoreCorruptError(str(entry.get("key")), "it was not written by quorate")
        if stamp not in seen:
            seen.add(stamp)
            yield int(amount), stamp
