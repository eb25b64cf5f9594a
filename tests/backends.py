"""The rendezvous backends that the behaviours are proved on: one table, and how to get a fresh endpoint for each.

What does not live here: the behaviours themselves; a test that takes the fixture ``backend`` runs once per row.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

__all__ = ["BACKENDS", "Backend"]


@dataclass(frozen=True)
class Backend:
    """One row: ``fresh_endpoint()`` gives an endpoint that no other test uses, for as long as the context is open.

    ``dies_with_host`` tells that one of the agents serves the store, so that the job ends with that agent.
    """

    name: str
    fresh_endpoint: Callable[[], AbstractContextManager[str]]
    dies_with_host: bool


@contextmanager
def _loopback_port() -> Iterator[str]:
    """Hold a free port: nobody else is given it, yet a listener that sets the same option can have it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("c10d", _loopback_port, dies_with_host=True),
        Backend("tcp", _loopback_port, dies_with_host=True),
    )
}
