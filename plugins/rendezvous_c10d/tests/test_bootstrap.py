"""The workers' store: a port that is ours before it is published, a fresh server per round."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quorate.errors import RendezvousStateError, StoreUnavailableError
from quorate.rendezvous import Bootstrap, reserve_master_port
from quorate.testing import open_descriptors, settles
from quorate_rendezvous_c10d import plugin

from .c10d_harness import DEADLINE_SECONDS, HERE, tasks


@pytest.fixture
def bootstrap() -> Iterator[Bootstrap]:
    """One bootstrap, released after the test."""
    (backend,) = plugin.quorate_register_rendezvous()
    assert backend.bootstrap is not None
    bootstrap = backend.bootstrap()
    yield bootstrap
    bootstrap.release()


def _run_workers(port: int, restart_count: int) -> list[str]:
    """Run two workers with nothing but the environment that the core sets; returns what they printed."""
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restart_count),
        "TORCHELASTIC_RUN_ID": "job",
    }
    command = [sys.executable, str(HERE / "c10d_worker.py")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as workers:
        try:
            printed = workers.communicate(timeout=DEADLINE_SECONDS)[0].splitlines()
        finally:
            if workers.poll() is None:
                os.killpg(workers.pid, signal.SIGKILL)
    assert workers.returncode == 0
    return sorted(printed)


def test_workers_meet_in_it_round_after_round(bootstrap: Bootstrap) -> None:
    assert bootstrap.shares_store
    ports = []
    for _ in range(2):
        port = bootstrap.reserve("127.0.0.1")
        bootstrap.activate()
        bootstrap.activate()
        # The same restart count both times, as after a change of membership: keys of the first round would collide.
        assert _run_workers(port, restart_count=0) == ["0 3", "1 3"]
        bootstrap.release()
        ports.append(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS)


def test_the_port_cannot_be_taken_once_it_is_reserved(bootstrap: Bootstrap) -> None:
    port = bootstrap.reserve("127.0.0.1")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(("127.0.0.1", port))


def test_it_listens_on_the_given_address(bootstrap: Bootstrap) -> None:
    port = bootstrap.reserve("127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=DEADLINE_SECONDS)


@pytest.mark.parametrize("address", ["", "192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_local_means_all_of_them(bootstrap: Bootstrap, address: str) -> None:
    port = bootstrap.reserve(address)
    bootstrap.activate()
    for local in ("127.0.0.1", "127.0.0.2"):
        socket.create_connection((local, port), timeout=DEADLINE_SECONDS).close()


def test_ipv6(bootstrap: Bootstrap) -> None:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    port = bootstrap.reserve("::1")
    bootstrap.activate()
    socket.create_connection(("::1", port), timeout=DEADLINE_SECONDS).close()


def test_the_port_is_from_the_range_that_was_given(bootstrap: Bootstrap) -> None:
    port = bootstrap.reserve("127.0.0.1")
    (backend,) = plugin.quorate_register_rendezvous()
    assert backend.bootstrap is not None
    other = backend.bootstrap()
    with pytest.raises(RendezvousStateError, match=rf"the port {port} cannot be taken.*Address already in use"):
        reserve_master_port(other, "127.0.0.1", f"{port}:{port}")
    bootstrap.release()
    try:
        assert reserve_master_port(other, "127.0.0.1", f"{port}:{port}") == port
    finally:
        other.release()


def test_activate_needs_a_reserved_port(bootstrap: Bootstrap) -> None:
    with pytest.raises(StoreUnavailableError, match="no port is reserved"):
        bootstrap.activate()


def test_release_leaves_nothing(bootstrap: Bootstrap) -> None:
    def cycle() -> None:
        bootstrap.reserve("127.0.0.1")
        bootstrap.reserve("127.0.0.1")
        bootstrap.activate()
        bootstrap.release()
        bootstrap.release()

    cycle()
    before, threads = open_descriptors(), tasks()
    for _ in range(5):
        cycle()
    assert settles(lambda: tasks() <= threads and open_descriptors() <= before)
