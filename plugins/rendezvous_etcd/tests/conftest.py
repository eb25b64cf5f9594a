"""What the tests share: private etcd servers, and a check that nothing is left behind."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quorate.proc import children_of
from quorate.rendezvous import RendezvousBackend, RendezvousParameters
from quorate.testing import open_descriptors, settles
from quorate_rendezvous_etcd import EtcdServer, plugin

from .etcd_harness import DEADLINE_SECONDS, Admin, warm_grpc_up
from .v2_harness import OpenV2


def _leftovers() -> set[str]:
    """Return the children of this process, and the sockets and pipes that it has open."""
    found = {f"child {pid}" for pid in children_of(os.getpid())}
    targets = {descriptor.partition(" ")[2] for descriptor in open_descriptors()}
    return found | {target for target in targets if target.startswith(("socket:", "pipe:"))}


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[EtcdServer]:
    """One member that all tests which do it no harm share."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def nothing_left(shared_etcd: EtcdServer) -> Iterator[None]:
    """Fail a test that leaves a thread, a child, a socket or a pipe behind."""
    # gRPC opens some descriptors once in a process's life, with its first channel.
    warm_grpc_up()
    threads, before = set(threading.enumerate()), _leftovers()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), f"{thread.name} is left"
    # gRPC closes a channel's socket on a thread of its own, a little later.
    assert settles(lambda: _leftovers() <= before), _leftovers() - before


@pytest.fixture
def start_etcd(nothing_left: None) -> Iterator[Callable[..., EtcdServer]]:
    """``start_etcd(members=1, **more)`` → a private EtcdServer that is gone after the test."""
    servers: list[EtcdServer] = []

    def start(*arguments: Any, **more: Any) -> EtcdServer:
        server = EtcdServer(*arguments, **more)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


# --- API v2 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_v2() -> Iterator[EtcdServer]:
    """One member that serves API v2, for all tests which do it no harm."""
    with EtcdServer(enable_v2=True) as server:
        yield server


@pytest.fixture
def open_v2(shared_v2: EtcdServer, nothing_left: None, request: pytest.FixtureRequest) -> Iterator[OpenV2]:
    """``open_v2(run_id=…, endpoint=…, **settings)`` → a store of the backend ``etcd-v2``, closed after the test."""
    # A name that etcd's paths take as it is.
    opener = OpenV2(shared_v2.get_endpoint(), re.sub(r"\W+", "-", request.node.name))
    yield opener
    opener.close()


def _backend() -> RendezvousBackend:
    (backend,) = (backend for backend in plugin.quorate_register_rendezvous() if backend.name == "etcd")
    return backend


@pytest.fixture
def open_store(nothing_left: None, shared_etcd: EtcdServer, run_id: str) -> Iterator[Callable[..., Any]]:
    """``open_store(endpoint=…, run_id=…, min_nodes=1, max_nodes=8, **settings)`` → EtcdStore, closed after the test."""
    opener = _backend().open_store
    assert opener is not None
    stores: list[Any] = []

    def start(**settings: Any) -> Any:
        endpoint = settings.pop("endpoint", None) or shared_etcd.get_endpoint()
        bounds = settings.pop("min_nodes", 1), settings.pop("max_nodes", 8)
        stores.append(
            opener(RendezvousParameters("etcd", endpoint, settings.pop("run_id", run_id), *bounds, **settings))
        )
        return stores[-1]

    yield start
    for store in reversed(stores):
        store.close()


@pytest.fixture
def run_id() -> str:
    """A run id that no other test has."""
    return f"job-{os.urandom(6).hex()}"


@pytest.fixture
def admin(nothing_left: None) -> Iterator[Callable[..., Admin]]:
    """``admin(server, user="", password="")`` → Admin, closed after the test."""
    made: list[Admin] = []

    def open_admin(server: EtcdServer, user: str = "", password: str = "") -> Admin:
        made.append(Admin(server.get_endpoint(), user, password))
        return made[-1]

    yield open_admin
    for one in made:
        one.close()
