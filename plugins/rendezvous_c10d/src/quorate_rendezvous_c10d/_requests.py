"""Requests of the TCPStore's protocol as bytes, and its answers, without torch: those of torch 2.1 and newer.

What does not live here: how values look (:mod:`._values`), and the connections (:mod:`._last_word`, :mod:`._lanes`).
"""

from __future__ import annotations

import struct
from typing import final

NONCE_BYTES = 4
_VALIDATE, _SET, _COMPARE_SET, _PING = 0, 1, 2, 13
_MAGIC = 0x3C85F7CE
_LENGTH = struct.Struct("<Q")
_LARGEST_ANSWER = 2 << 20


def greeting(nonce: bytes) -> bytes:
    """Return what a client sends first; a TCPStore answers with ``nonce``."""
    return struct.pack("<BI", _VALIDATE, _MAGIC) + bytes([_PING]) + nonce


def set_request(key: str, value: bytes) -> bytes:
    """Write ``key``.  The server does not answer."""
    return bytes([_SET]) + _pack(f"/{key}".encode()) + _pack(value)


def compare_set_request(key: str, expected: bytes, desired: bytes) -> bytes:
    """Write ``key`` if it is absent and nothing is expected, or if it holds ``expected``; answered with its value."""
    return bytes([_COMPARE_SET]) + b"".join(map(_pack, (f"/{key}".encode(), expected, desired)))


def _pack(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


@final
class AnswerReader:
    """Reads values out of what a server sends, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def take(self, length: int) -> bytes | None:
        """Return the next ``length`` bytes; ``None`` where they have not come yet."""
        if len(self._bytes) < length:
            return None
        taken = bytes(self._bytes[:length])
        del self._bytes[:length]
        return taken

    def next_value(self) -> bytes | None:
        """Return the next value; ``None`` where it has not come whole yet.

        Raises:
            ValueError: it is longer than any value.
        """
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        if length > _LARGEST_ANSWER:
            raise ValueError("its answer is longer than any value")
        whole = self.take(_LENGTH.size + length)
        return None if whole is None else whole[_LENGTH.size :]
