"""EtcdServer: starts, serves, loses members, and leaves nothing behind, whatever becomes of its owner."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from quorate.errors import StoreUnavailableError, UsageError
from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import DEADLINE_SECONDS, settles

Start = Callable[..., EtcdServer]


def _is_healthy(endpoint: str) -> bool:
    connection = HTTPConnection(endpoint, timeout=DEADLINE_SECONDS)
    try:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())["health"] == "true"
    except OSError:
        return False
    finally:
        connection.close()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_member_serves_and_leaves_nothing(start_etcd: Start) -> None:
    server = start_etcd()
    endpoint, folder = server.get_endpoint(), Path(server._folder)
    assert _is_healthy(endpoint)
    assert folder.is_dir()
    pids = [*server.pids, server._guardian.pid]
    server.stop()
    server.stop()
    assert not folder.exists()
    assert not any(map(_exists, pids))
    assert not _is_healthy(endpoint)


def test_it_can_be_started_again(start_etcd: Start) -> None:
    server = start_etcd()
    server.start()
    assert len(server.pids) == 1
    server.stop()
    server.start()
    assert _is_healthy(server.get_endpoint())


def test_three_members_outlive_their_leader(start_etcd: Start) -> None:
    server = start_etcd(members=3)
    endpoints = server.get_endpoint().split(",")
    assert len(endpoints) == 3
    assert all(_is_healthy(endpoint) for endpoint in endpoints)
    first = server.leader()
    server.kill(first)
    assert len(server.pids) == 2
    second = server.leader()
    assert second != first
    server.restart(first)
    assert _is_healthy(endpoints[first])
    assert server.get_endpoint().split(",") == endpoints


def test_a_frozen_member_goes_on(start_etcd: Start) -> None:
    server = start_etcd(members=3)
    first = server.leader()
    server.pause(first)
    assert settles(lambda: server.leader() != first)
    server.resume(first)
    assert settles(lambda: _is_healthy(server.get_endpoint().split(",")[first]))


def test_all_members_can_be_stopped_and_started(start_etcd: Start) -> None:
    server = start_etcd(members=3)
    for index in range(3):
        server.kill(index)
    assert server.pids == []
    for index in range(3):
        server.restart(index, wait=False)
    server.await_ready()
    assert server.leader() in range(3)


def test_an_orderly_end_is_possible(start_etcd: Start) -> None:
    server = start_etcd()
    server.terminate()
    assert server.pids == []
    server.restart()
    assert _is_healthy(server.get_endpoint())


def test_data_stays_where_it_was_asked_for(start_etcd: Start, tmp_path: Path) -> None:
    server = start_etcd(data_dir=str(tmp_path))
    server.stop()
    assert (tmp_path / "m0" / "member").is_dir()


def test_api_v2_is_served_on_request(start_etcd: Start) -> None:
    for enable_v2, status in ((True, 200), (False, 404)):
        endpoint = start_etcd(enable_v2=enable_v2).get_endpoint()
        connection = HTTPConnection(endpoint, timeout=DEADLINE_SECONDS)
        connection.request("GET", "/v2/keys/")
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_everything_is_gone_when_the_owner_dies(number: int) -> None:
    script = """
import sys
from quorate_rendezvous_etcd import EtcdServer
server = EtcdServer()
server.start()
print(server._folder, server._guardian.pid, *server.pids, flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    folder, *pids = owner.stdout.readline().split()
    assert Path(folder).is_dir()
    # Who adopts them may reap them late; a pidfd tells of the end itself.
    descriptors = [os.pidfd_open(int(pid)) for pid in pids]
    owner.send_signal(number)
    assert owner.wait(DEADLINE_SECONDS) == -number
    owner.stdin.close()
    owner.stdout.close()
    for descriptor in descriptors:
        ready, _, _ = select.select([descriptor], [], [], DEADLINE_SECONDS)
        assert ready
        os.close(descriptor)
    assert settles(lambda: not Path(folder).exists())


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_without_a_binary_it_says_how_to_install_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QUORATE_ETCD_BINARY", raising=False)
    with pytest.raises(UsageError, match="apt-get install etcd-server"):
        EtcdServer()
    monkeypatch.setenv("QUORATE_ETCD_BINARY", "no-such-etcd")
    with pytest.raises(UsageError, match=r"'no-such-etcd' cannot be run.*QUORATE_ETCD_BINARY"):
        EtcdServer()


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_binary_is_the_one_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = _script(tmp_path / "etcd-old", "echo --name --enable-v2")
    monkeypatch.setenv("QUORATE_ETCD_BINARY", named)
    assert EtcdServer(enable_v2=True)._binary == named
    newer = _script(tmp_path / "etcd-new", "echo --name")
    with pytest.raises(UsageError, match=r"etcd-new does not serve etcd's API v2.*3\.6.*'etcd'"):
        EtcdServer(enable_v2=True, binary=newer)


def test_an_etcd_that_ends_is_reported_with_its_last_lines(start_etcd: Start) -> None:
    with pytest.raises(StoreUnavailableError, match="m0 ended") as caught:
        start_etcd(arguments=["--no-such-option"])
    assert "no-such-option" in str(caught.value)


def test_other_wrong_uses() -> None:
    with pytest.raises(UsageError, match="1 member or 3"):
        EtcdServer(2)
    with pytest.raises(UsageError, match="cert and key together"):
        EtcdServer(cert="cert.pem")
    with pytest.raises(UsageError, match="has not been started"):
        EtcdServer().get_endpoint()
