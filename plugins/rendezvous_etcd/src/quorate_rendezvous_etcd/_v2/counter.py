"""Counters in etcd's API v2: a directory with one entry for each addition, in the order in which etcd received them.

API v2 cannot add.  With compare-and-swap the nodes that count at the same moment retry against each other: a thousand
nodes took 25 requests each, and eight times as long.  Here each node posts its addition once, and then reads its place
in the order.  An addition that was posted twice, because an answer was lost, has the same stamp twice.  The first one
counts.

Pure functions; nothing here talks to etcd.
"""

from __future__ import annotations

from collections.abc import Iterator

from quorate.errors import StoreCorruptError

from .._limits import check_count, parse_count
from .answers import Node

_KIND = "c1"


def pack_addition(amount: int, stamp: str) -> str:
    """Return the text that is posted."""
    return f"{_KIND}:{amount}:{stamp}"


def is_counter(node: Node) -> bool:
    """Return whether ``node``, read with its children, is a counter, and not another directory."""
    return node.is_directory and bool(node.children)


def total(node: Node) -> int:
    """Return the count of the counter ``node``.  Raises StoreCorruptError."""
    return check_count(node.key, sum(amount for amount, _ in _additions(node)))


def count_at(node: Node, stamp: str) -> int | None:
    """Return the count right after the addition ``stamp``; ``None`` if that is not there.  Raises StoreCorruptError."""
    count = 0
    for amount, its_stamp in _additions(node):
        count += amount
        if its_stamp == stamp:
            return check_count(node.key, count)
    return None


def _additions(node: Node) -> Iterator[tuple[int, str]]:
    """Yield the amount and the stamp of each addition in order, each once."""
    seen: set[str] = set()
    for entry in sorted(node.children, key=lambda entry: entry.created):
        kind, _, rest = (entry.value or "").partition(":")
        amount, colon, stamp = rest.partition(":")
        if kind != _KIND or not colon:
            raise StoreCorruptError(entry.key, "it was not written by quorate")
        number = parse_count(entry.key, amount)
        if stamp not in seen:
            seen.add(stamp)
            yield number, stamp
