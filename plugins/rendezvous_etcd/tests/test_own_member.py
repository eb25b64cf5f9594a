"""A node that runs a member of its job's etcd: which modules its start waits for, and how it asks that member."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from quorate.clock import monotonic
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import EtcdServer
from quorate_rendezvous_etcd._settings import Settings, parse_endpoints
from quorate_rendezvous_etcd._v3.client import Client, Connection
from quorate_rendezvous_etcd._v3.requests import Requests

from .etcd_harness import DEADLINE_SECONDS


def test_a_member_starts_without_what_talks_to_it() -> None:
    """HTTP/2, protobuf and TLS take longer to import than etcd to start, so the agent does both at once."""
    script = """
import sys
import quorate_rendezvous_etcd._hosted.store, quorate_rendezvous_etcd._hosted.member
print(*sorted({"h2", "google.protobuf", "ssl"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_a_member_that_loses_its_leader_is_asked_again_and_one_that_is_frozen_is_not(
    start_etcd: Callable[..., EtcdServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_etcd(members=3)
    leader = server.leader()
    _, endpoints = parse_endpoints(server.get_endpoint())
    own = (leader + 1) % 3
    settings = Settings.from_parameters(RendezvousParameters("etcd", server.get_endpoint(), "own", 1, 1))
    settings = evolve(settings, begins_with_first=True, own_member_seconds=0.2)

    def asked(order: list[int], frozen: int, seconds: float) -> list[int]:
        """Return which members a client that knows ``order`` asks, in turn, while the member ``frozen`` is frozen."""
        known = [endpoints[index] for index in order]
        client = Client(evolve(settings, endpoints=tuple(known), dial_timeout_seconds=seconds))
        requests = Requests(client.messages)
        request = requests.transaction([], [requests.put(b"key", b"value", 0)])
        attempts: list[int] = []
        dial = client._dial

        def note() -> Connection:
            connection = dial()
            call, index = connection.calls["Txn"], order[list(map(str, known)).index(connection.endpoint)]

            def counted(*arguments: Any, **options: Any) -> Any:
                attempts.append(index)
                return call(*arguments, **options)

            connection.calls["Txn"] = counted
            return connection

        monkeypatch.setattr(client, "_dial", note)
        try:
            server.pause(frozen)
            client.transact(request, monotonic() + DEADLINE_SECONDS)
            return attempts
        finally:
            client.close()
            server.resume(frozen)

    assert set(asked([own, leader], frozen=leader, seconds=DEADLINE_SECONDS)) == {own}
    leader = server.leader()
    own, third = (index for index in range(3) if index != leader)
    assert asked([own, third], frozen=own, seconds=0.5)[:4] == [own, own, own, third]
