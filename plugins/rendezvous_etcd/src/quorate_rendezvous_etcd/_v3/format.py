"""How the values of the store look in etcd's API v3.

The first byte of a value is its kind: put, created (a stamp follows), or a counter (an offset follows).

Pure functions; nothing here talks to etcd.
"""

from __future__ import annotations

import os
from typing import Any

from quorate.errors import StoreCorruptError

from .._limits import LARGEST_VALUE_BYTES, check_count, parse_count

_PUT, _CREATED, _COUNTER = b"\x01", b"\x02", b"\x03"
_STAMP_BYTES = 16


def pack_put(data: bytes) -> bytes:
    """Return what is stored for ``data`` that was put."""
    return _PUT + data


def pack_created(data: bytes) -> bytes:
    """Return what is stored for ``data`` that was created: no other call returns the same bytes."""
    return _CREATED + os.urandom(_STAMP_BYTES) + data


def has_data(created: bytes, data: bytes) -> bool:
    """Return whether ``created`` is what :func:`pack_created` has made of ``data``."""
    return created[1 + _STAMP_BYTES :] == data


def pack_counter(offset: int) -> bytes:
    """Return what is stored for a counter, whose count is the number of its writes and ``offset``."""
    return _COUNTER + b"%d" % offset


def data_of(key: str, record: Any) -> bytes:
    """Return the data in etcd's ``record`` of ``key``; of a counter, its count in digits.

    Raises:
        StoreCorruptError: quorate has not written it.
    """
    value: bytes = record.value
    kind = value[:1]
    if kind == _COUNTER:
        return b"%d" % count_of(key, record)
    start = {_PUT: 1, _CREATED: 1 + _STAMP_BYTES}.get(kind)
    if start is None or len(value) < start:
        raise StoreCorruptError(key, "it was not written by quorate")
    if len(value) - start > LARGEST_VALUE_BYTES:
        raise StoreCorruptError(key, f"it has {len(value) - start} bytes; the store accepts {LARGEST_VALUE_BYTES}")
    return value[start:]


def count_of(key: str, record: Any) -> int:
    """Return the count of the counter in etcd's ``record``.  Raises StoreCorruptError."""
    return check_count(key, int(record.version) + offset_of(key, record))


def offset_of(key: str, record: Any) -> int:
    """Return the offset of the counter in etcd's ``record``.  Raises StoreCorruptError."""
    value: bytes = record.value
    if value[:1] != _COUNTER:
        raise StoreCorruptError(key, "it is not a counter")
    return parse_count(key, value[1:].decode("ascii", "replace"))
