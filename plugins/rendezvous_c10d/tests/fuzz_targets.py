"""What stands in a TCPStore, and what its raw protocol answers; found by ``core.tests.fuzz``."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress

from core.tests.fuzz.target import Target, over_a_socket

from quorate.clock import monotonic
from quorate.errors import UsageError
from quorate_rendezvous_c10d._agent_store import parse_when
from quorate_rendezvous_c10d._hosting import _parse_note
from quorate_rendezvous_c10d._last_word import RawClient
from quorate_rendezvous_c10d._requests import AnswerReader
from quorate_rendezvous_c10d._values import STAMP_BYTES, STAMPED, read_one, strip

_STAMP = STAMPED + bytes(STAMP_BYTES - 1)


class _Store:
    def __init__(self, value: bytes) -> None:
        self._value = value

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        return self._value


def _read_value(data: bytes) -> None:
    assert read_one(_Store(data), "key") in (None, strip(data))
    assert len(data) - len(strip(data)) in (0, STAMP_BYTES)


def _read_note(data: bytes) -> None:
    _, hosted_by = _parse_note(data)
    assert hosted_by.isprintable()
    assert len(hosted_by) < 5000


def _ask(sock: socket.socket) -> None:
    client = object.__new__(RawClient)
    client._socket, client._deadline, client._reader = sock, monotonic() + 5.0, AnswerReader()
    with suppress(BrokenPipeError):  # the other end is gone already; its answer is read nevertheless where there is one
        client.compare_set("key", b"", b"value")


_NOTE = b'{"version":1,"run_id":"job","host":"h","pid":7}'

TARGETS: Mapping[str, Target] = {
    "values": Target(_read_value, (_STAMP + b"value", b"12", b"")),
    "notes of hosts": Target(_read_note, (_NOTE, b"{}", _NOTE.replace(b"7", b"1e999"), b"[" * 100_000)),
    "when to serve a store": Target(
        lambda data: parse_when(data.decode("utf-8", "replace")), (b"always", b"auto", b"never"), (UsageError,)
    ),
    "answers to last words": Target(over_a_socket(_ask), (b"\5" + bytes(7) + b"value",), (ValueError, OSError)),
}
