"""Waits until the first worker's store listens, before torch connects to it.

torch's client that comes too early pauses for half a second before it tries again; most workers come too early, since
all enter a world in the same moment.  What does not live here: the store itself, which torch makes.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from quorate.clock import monotonic, sleep

from ._listeners import listens

#: As long as torch's own pause: if the store is not there by then, nothing is gained by waiting.
_TIMEOUT_SECONDS = 0.5
_PAUSE_SECONDS = 0.002


def wait_for_store(is_over: Callable[[], bool]) -> None:
    """Wait, for half a second at most, until ``MASTER_PORT`` listens; ``is_over`` ends the wait."""
    environment = os.environ
    port = environment.get("MASTER_PORT", "")
    if (
        environment.get("RANK", "0") == "0"
        or environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        or not port.isdecimal()
        or "torch.distributed" not in sys.modules
    ):
        return
    is_here = environment.get("GROUP_RANK") == "0"
    end = monotonic() + _TIMEOUT_SECONDS
    while monotonic() < end and not is_over():
        if listens(int(port)) if is_here else _answers(environment.get("MASTER_ADDR", ""), int(port)):
            return
        sleep(_PAUSE_SECONDS)


def _answers(host: str, port: int) -> bool:
    try:
        # Not socket.create_connection: the program may have replaced what that uses.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        probe = socket.SocketType(family, kind, protocol)
    except OSError:
        return True  # torch finds out what is wrong
    try:
        probe.settimeout(_TIMEOUT_SECONDS)
        return probe.connect_ex(address) == 0
    finally:
        probe.close()
