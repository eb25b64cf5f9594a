"""Writes for a node whose agent was killed, without torch: to import it takes longer than the others should wait.

Three of the TCPStore's requests are enough: the greeting, set, and compare-and-set (which answers with the value that
is there).  They are those of torch 2.1 and newer.  Where the server does not answer them as expected, torch is imported
after all.  What does not live here: how values look (:mod:`._values`), and when something is written (the core).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, final

from quorate.clock import monotonic
from quorate.rendezvous import Write

from ._connection import connect
from ._requests import NONCE_BYTES, AnswerReader, compare_set_request, greeting, set_request
from ._values import ABSENT, IDENTITY_KEY, STAMPED

_SECONDS = 3.0
_PIECE_BYTES = 1 << 16


def write_last_words(address: str, port: int, prefix: str, identity: bytes, writes: Sequence[Write]) -> None:
    """Make ``writes`` in the store at ``address``, if it is the one with ``identity``.

    Raises:
        OSError, RuntimeError: it cannot be reached.
    """
    try:
        with RawClient(address, port, _SECONDS) as client:
            _write(client, prefix, identity, writes)
    except ValueError:
        connection = connect(address, port, monotonic() + _SECONDS, _SECONDS)
        _write(connection.store, prefix, identity, writes)


def _write(store: Any, prefix: str, identity: bytes, writes: Sequence[Write]) -> None:
    if bytes(store.compare_set(IDENTITY_KEY, ABSENT, ABSENT)) != identity:
        return  # another store has taken its place
    for write in writes:
        key, stamped = prefix + write.key, STAMPED + os.urandom(16) + write.value
        if write.once:
            store.compare_set(key, b"", stamped)
        else:
            store.set(key, stamped)
            # A set is not answered; the answer to a question behind it tells that it has arrived.
            store.compare_set(key, ABSENT, ABSENT)


@final
class RawClient:
    """A connection that speaks as much of the TCPStore's protocol as :func:`write_last_words` needs.

    Raises:
        OSError: there is no answer.
        ValueError: what answers does not speak this protocol.
    """

    def __init__(self, address: str, port: int, timeout: float) -> None:
        self._deadline = monotonic() + timeout
        self._socket = socket.create_connection((address, port), timeout)
        try:
            self._reader = AnswerReader()
            nonce = os.urandom(NONCE_BYTES)
            self._send(greeting(nonce))
            while (echo := self._reader.take(NONCE_BYTES)) is None:
                self._receive()
            if echo != nonce:
                raise ValueError("it does not answer a ping as a TCPStore does")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def set(self, key: str, value: bytes) -> None:
        """Write ``key``; there is no answer."""
        self._send(set_request(key, value))

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Write ``key`` if it is absent and nothing is expected, or if it holds ``expected``; return what is there."""
        self._send(compare_set_request(key, expected, desired))
        while (value := self._reader.next_value()) is None:
            self._receive()
        return value

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(max(0.001, self._deadline - monotonic()))
        self._socket.sendall(data)

    def _receive(self) -> None:
        self._socket.settimeout(max(0.001, self._deadline - monotonic()))
        piece = self._socket.recv(_PIECE_BYTES)
        if not piece:
            raise ValueError("it closed the connection")
        self._reader.feed(piece)
