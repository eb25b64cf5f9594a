"""Children that were forked, spawned or fork-served open a store, whatever their parent has done before.

gRPC cannot be used in a process that was forked after its parent had used it: such children crashed, or hung for good.
Children of every kind and what their parents do are in ``forking``, the parents' program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import DEADLINE_SECONDS, Admin
from .forking import CHILDREN, PARENTS

HERE = Path(__file__).parent


def run_parent(
    endpoint: str, run_id: str, parent: str, child: str, count: int, **settings: Any
) -> tuple[list[str], str]:
    """Run a parent to its end, which must be a good one; returns what its children have said, and its stderr."""
    command = [sys.executable, str(HERE / "forking.py"), endpoint, run_id, json.dumps(settings)]
    done = subprocess.run(
        [*command, parent, child, str(count)], capture_output=True, text=True, timeout=4 * DEADLINE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("parent", list(PARENTS))
def test_children_open_stores_whatever_their_parent_does(
    nothing_left: None, shared_etcd: EtcdServer, run_id: str, parent: str
) -> None:
    said, _ = run_parent(shared_etcd.get_endpoint(), run_id, parent, "fork", 4)
    assert said == ["ok"] * 4


@pytest.mark.parametrize("child", [name for name in CHILDREN if name != "fork"])
@pytest.mark.parametrize("parent", ["opened", "leaked"])
def test_children_of_every_kind(
    nothing_left: None, shared_etcd: EtcdServer, run_id: str, parent: str, child: str
) -> None:
    said, _ = run_parent(shared_etcd.get_endpoint(), run_id, parent, child, 2)
    assert said == ["ok"] * 2


@pytest.mark.slow(reason="twenty interpreters end, one after the other")
def test_twenty_children_in_a_row(nothing_left: None, shared_etcd: EtcdServer, run_id: str) -> None:
    said, complaints = run_parent(shared_etcd.get_endpoint(), run_id, "busy", "os.fork", 20)
    assert said == ["ok"] * 20
    assert not complaints


def test_nothing_is_complained_of_when_an_import_was_under_way(
    nothing_left: None, shared_etcd: EtcdServer, run_id: str
) -> None:
    """The fork waits for it; what registers itself for forks meanwhile would have been told half of this one."""
    said, complaints = run_parent(shared_etcd.get_endpoint(), run_id, "importing", "os.fork", 1)
    assert said == ["ok"]
    assert not complaints


@pytest.mark.parametrize("parent", ["opened", "closed"])
def test_children_log_in(
    start_etcd: Callable[..., EtcdServer], admin: Callable[..., Admin], run_id: str, parent: str
) -> None:
    server = start_etcd()
    operator = admin(server)
    operator.add_user("trainer", "secret", "quorate/")
    operator.enable_auth("root secret")
    who = {"user": "trainer", "password": "secret"}
    said, _ = run_parent(server.get_endpoint(), run_id, parent, "fork", 2, **who)
    assert said == ["ok"] * 2
    said, _ = run_parent(server.get_endpoint(), run_id, "unused", "fork", 1, **{**who, "password": "wrong"})
    assert "UsageError" in said[0]
    assert "does not accept user 'trainer'" in said[0]


def test_forked_children_that_use_no_store_end_well(open_store: Callable[..., Any]) -> None:
    """gRPC's own fork handlers crashed 30 of 400 such children."""
    store = open_store()
    ends = threading.Event()

    def work() -> None:
        while not ends.is_set():
            store.add("counter", 1)

    def wait() -> None:
        while not ends.is_set():
            store.wait("never", 0.2)

    threads = [threading.Thread(target=work), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    try:
        codes = [_fork_once() for _ in range(120)]
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {0}


def _fork_once() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
        pid = os.fork()
    if pid == 0:
        try:
            sum(range(1000))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_keeps_no_copy_of_its_parents_connections(open_store: Callable[..., Any]) -> None:
    """It would hide the parent's death from etcd."""
    store = open_store()
    waiting = threading.Thread(target=store.wait, args=("never", 60.0))
    waiting.start()
    store.add("count", 1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sockets = [sock for each in _channels(store) for sock in each._sockets]
            os.write(writer, f"{len(sockets)} {[sock.fileno() for sock in sockets if sock.fileno() >= 0]}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    said = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    store.interrupt()
    waiting.join()
    assert int(said.split()[0]) >= 1
    assert said.endswith(" []")


def _channels(store: Any) -> list[Any]:
    transport = store._client
    return [each.channel for each in (transport._connection, *transport._watching) if each is not None]


_PARENT_OF_THE_LAWS = """
import multiprocessing, sys
import grpc
import pytest
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin

grpc.channel_ready_future(grpc.insecure_channel(sys.argv[1])).result(60)
backend = next(each for each in plugin.quorate_register_rendezvous() if each.name == "etcd")
leaked = backend.open_store(RendezvousParameters("etcd", sys.argv[1], sys.argv[2], 1, 2))
leaked.add("count", 1)

def keep_the_laws():
    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", sys.argv[3]]))

child = multiprocessing.get_context("fork").Process(target=keep_the_laws)
child.start()
child.join()
assert leaked.add("count", 1) == 2
sys.exit(child.exitcode)
"""


@pytest.mark.slow(reason="all laws of the conformance kit")
def test_the_laws_hold_in_a_forked_child(nothing_left: None, shared_etcd: EtcdServer, run_id: str) -> None:
    """The parent has used gRPC, and leaks a store of its own."""
    laws = f"{HERE / 'test_conformance.py'}::TestEtcd"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _PARENT_OF_THE_LAWS]
    done = subprocess.run(
        [*command, shared_etcd.get_endpoint(), run_id, laws], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
