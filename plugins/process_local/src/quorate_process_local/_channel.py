"""The connection to one live worker, on the agent's side: packets of JSON.

What does not live here: what the messages mean (:mod:`._live`).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any, final

from quorate.proc import forget, hold
from quorate.text import parse_json

_LONGEST_MESSAGE_BYTES = 4096


@final
class Channel:
    """The connection to one live worker."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        accepted.setblocking(False)
        self.descriptor = hold(accepted.fileno(), accepted.close)
        #: Whether the worker has said that it is live.
        self.is_open = False
        #: How many times it was asked to leave.
        self.number = 0

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send ``message``; return whether it could be sent."""
        try:
            self._socket.send(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, ``None`` if none has come yet.

        Raises:
            EOFError: the worker has closed its side.
            ValueError: what came is not a message.
        """
        try:
            data = self._socket.recv(_LONGEST_MESSAGE_BYTES + 1)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        if len(data) > _LONGEST_MESSAGE_BYTES:
            raise ValueError("it is too long")
        # Less deep than what can be encoded: an answer may hold what the worker has sent.
        message = parse_json(data)
        if not isinstance(message, dict):
            raise ValueError("it is not an object")
        return message

    def close(self) -> None:
        """Close it."""
        if self.descriptor >= 0:
            forget(self.descriptor)
            self._socket.close()
            self.descriptor, self.is_open = -1, False
