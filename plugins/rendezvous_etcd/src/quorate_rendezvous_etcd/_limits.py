"""The largest values, counts and numbers that a store writes, or accepts from etcd.

Pure functions; nothing here talks to etcd.
"""

from __future__ import annotations

from quorate.errors import StoreCorruptError, UsageError

LARGEST_VALUE_BYTES = (1 << 20) + 64  # 1 MiB of the protocol, and its signature
#: Every number up to this one is exact in every language, JSON's included.
LARGEST_COUNT = 1 << 53
_MOST_DIGITS = len(str(LARGEST_COUNT))


def check_value(key: str, value: bytes) -> bytes:
    """Return ``value``, which is about to be written.  Raises UsageError if it is too large."""
    if len(value) > LARGEST_VALUE_BYTES:
        raise UsageError(f"the value of {key!r} has {len(value)} bytes; the store accepts {LARGEST_VALUE_BYTES}")
    return value


def check_amount(key: str, amount: int) -> int:
    """Return ``amount``, which is about to be added.  Raises UsageError if no counter can hold it."""
    if abs(amount) > LARGEST_COUNT:
        raise UsageError(f"the amount {amount} to add to {key!r} is larger than a counter can hold, {LARGEST_COUNT}")
    return amount


def check_count(key: str, count: int) -> int:
    """Return ``count``, which was read from etcd.  Raises StoreCorruptError if it is too large."""
    if abs(count) > LARGEST_COUNT:
        raise StoreCorruptError(key, f"its count is larger than {LARGEST_COUNT}")
    return count


def parse_count(key: str, text: str) -> int:
    """Return the number that was read from etcd at ``key``.  Raises StoreCorruptError for any other text."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise StoreCorruptError(key, "it is not a counter")
    # Checked before the conversion: Python refuses to convert thousands of digits.
    if len(digits) > _MOST_DIGITS:
        raise StoreCorruptError(key, f"its count is larger than {LARGEST_COUNT}")
    return check_count(key, int(text))
