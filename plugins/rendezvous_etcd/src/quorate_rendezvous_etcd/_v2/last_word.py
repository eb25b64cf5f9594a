"""Writes over API v2 for a node whose agent was killed, and removes its entry; called in its guardian.

What does not live here: when something is written (the core), and the store (:mod:`.store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from quorate.clock import monotonic
from quorate.rendezvous import Write

from .._settings import Settings
from .answers import RefusedError
from .client import Client, Route
from .format import Value, key_path, new_stamp, pack

__all__ = ["write_last_words"]

_SECONDS = 3.0


def write_last_words(settings: Settings, keys: str, member: str, writes: Sequence[Write]) -> None:
    """Make ``writes`` below ``keys``, and remove ``member``.  Raises what :class:`Client` raises."""
    client = Client(Route(settings))
    try:
        for write in writes:
            text = pack(Value(write.value, new_stamp()))
            conditions = {"prevExist": False} if write.once else {}
            with suppress(RefusedError):  # another node was first
                client.put(f"{keys}/{key_path(write.key)}", monotonic() + _SECONDS, value=text, **conditions)
        with suppress(RefusedError):
            client.delete(member, monotonic() + _SECONDS)
    finally:
        client.close()
