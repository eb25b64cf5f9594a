"""Workers that are connected to each other, and fail when the connection breaks, as torch's collectives do.

What does not live here: workers that stand alone (``workers``).  Pipes instead of gloo: the test takes a tenth of the
time, and decides what the exception says.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

from tests.workers import hold, pass_gate, rank, restart_count, tell

#: What gloo says; the plugin ``errors`` takes it for a broken collective.
BROKEN = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:53972"


def lean_on_peer(ear: str, pipes: list[str], message: str) -> int:
    """In a world of two: raise ``message`` when the other worker ends.  Alone: return the rank."""
    if os.environ["WORLD_SIZE"] == "1":
        tell(ear, "alone")
        return rank()
    _wait_for_peers_end(ear, pipes)
    raise RuntimeError(message)


def fail_under_peer(ear: str, pipes: list[str], gates: list[str]) -> None:
    """Rank 1 lets go of rank 0 when the first gate opens, and raises when the second one does."""
    if rank() == 0:
        _wait_for_peers_end(ear, pipes)
        raise RuntimeError(BROKEN)
    streams = _connect(pipes)
    tell(ear, "started")
    pass_gate(gates[0])
    for stream in streams:
        os.close(stream)
    pass_gate(gates[1])
    raise ValueError("here is the root cause")


def _wait_for_peers_end(ear: str, pipes: list[str]) -> None:
    incoming, outgoing = _connect(pipes)
    tell(ear, "started")
    os.read(incoming, 1)
    os.close(incoming)
    os.close(outgoing)


def _connect(pipes: list[str]) -> tuple[int, int]:
    """Open one pipe for reading and the other for writing; returns when both workers have."""
    if rank() == 0:
        incoming = os.open(pipes[0], os.O_RDONLY)
        return incoming, os.open(pipes[1], os.O_WRONLY)
    outgoing = os.open(pipes[0], os.O_WRONLY)
    return os.open(pipes[1], os.O_RDONLY), outgoing


def fail_twice(ear: str) -> int:
    """Rank 1 raises the same in the first two attempts; then all end well."""
    tell(ear, "started")
    if restart_count() == 2:
        return rank()
    if rank() == 0:
        hold()
    raise ValueError("the same again")


def lose_logs(log_dir: str) -> NoReturn:
    """Take the folder of the logs away, put something else in its place, then fail."""
    shutil.rmtree(log_dir)
    with open(log_dir, "x"):
        pass
    raise ValueError("no logs any more")
