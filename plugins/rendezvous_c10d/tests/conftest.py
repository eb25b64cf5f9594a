"""Fixtures: free endpoints, members of a store in this process and in others; all are gone after the test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_c10d import plugin

from .c10d_harness import Member


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A free endpoint: the port is held, yet a listener that sets the same option can have it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


@pytest.fixture
def member() -> Iterator[Callable[..., Member]]:
    """Start members; all are gone after the test."""
    members: list[Member] = []

    def start(*arguments: Any, **settings: Any) -> Member:
        members.append(Member(*arguments, **settings))
        return members[-1]

    yield start
    for process in reversed(members):
        process.end()


@pytest.fixture
def open_store() -> Iterator[Callable[..., Any]]:
    """Open stores in this process; all are closed after the test, clients first."""
    (backend,) = plugin.quorate_register_rendezvous()
    assert backend.open_store is not None
    opener = backend.open_store
    stores: list[Any] = []

    def start(endpoint: str, run_id: str = "job", **settings: Any) -> Any:
        max_nodes = settings.pop("max_nodes", 8)
        stores.append(opener(RendezvousParameters("c10d", endpoint, run_id, 1, max_nodes, **settings)))
        return stores[-1]

    yield start
    for store in reversed(stores):
        store.close()
