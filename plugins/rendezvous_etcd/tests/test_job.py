"""Whose keys are whose: incarnations of a run id, members that come, go, die and freeze, and what stays in etcd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from quorate.errors import StoreLostError
from quorate.testing import settles
from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import Admin, InThread

Open = Callable[..., Any]
Start = Callable[..., EtcdServer]
MakeAdmin = Callable[..., Admin]


def _member(endpoint: str, run_id: str, **settings: object) -> subprocess.Popen[str]:
    """Start a process that joins the job, says so, and leaves in order when its standard input ends."""
    script = """
import sys, ast
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin
etcd = next(backend for backend in plugin.quorate_register_rendezvous() if backend.name == "etcd")
store = etcd.open_store(RendezvousParameters("etcd", sys.argv[1], sys.argv[2], 1, 8, **ast.literal_eval(sys.argv[3])))
store.put("hello", b"there")
print("joined", flush=True)
sys.stdin.read()
store.close()
"""
    command = [sys.executable, "-c", script, endpoint, run_id, repr(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "joined\n"
    return process


def _end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


def test_the_last_to_leave_removes_everything(start_etcd: Start, open_store: Open, admin: MakeAdmin) -> None:
    server = start_etcd()
    root = admin(server)
    first, second = (open_store(endpoint=server.get_endpoint()) for _ in range(2))
    first.put_many([(f"key/{number}", b"value") for number in range(200)])
    second.add("count", 1)
    first.close()
    assert second.get(["key/7"]) == [b"value"]
    assert len(root.leases()) == 2
    second.close()
    assert root.stored() == {}
    assert root.leases() == set()


def test_a_run_id_can_be_used_again(open_store: Open) -> None:
    first = open_store()
    assert first.create("ended", b"well")
    first.close()
    second = open_store()
    assert second.get(["ended"]) == [None]
    assert second.add("count", 1) == 1


def test_a_job_that_was_killed_outright_goes_with_its_leases(start_etcd: Start, admin: MakeAdmin, run_id: str) -> None:
    server = start_etcd()
    root = admin(server)
    process = _member(server.get_endpoint(), run_id, key_ttl=2, member_ttl=2, store_outage_timeout=2)
    assert root.stored()
    _end(process)
    assert settles(lambda: not root.stored() and not root.leases())


def test_after_a_job_was_killed_its_run_id_begins_anew(
    start_etcd: Start, open_store: Open, admin: MakeAdmin, run_id: str
) -> None:
    """The keys of the dead job are still there for a while, and are neither read nor left."""
    server = start_etcd()
    root = admin(server)
    process = _member(server.get_endpoint(), run_id, member_ttl=2)
    early = open_store(endpoint=server.get_endpoint())
    assert early.get(["hello"]) == [b"there"], "as long as a member lives, who comes joins it"
    _end(process)
    # A crash, of the only other member: its thread ends, nothing is said.
    early._membership._keeper.stop()
    early._client.close()
    for lease in root.leases():
        if lease != early._membership.lease:
            root.call("Lease", "LeaseRevoke", ID=lease)
    assert any("/key/hello" in key for key in root.stored())
    late = open_store(endpoint=server.get_endpoint())
    assert late.get(["hello"]) == [None]
    assert all(late._membership._incarnation.token in key or key.endswith("/job") for key in root.stored())


def test_a_member_that_was_killed_does_not_keep_the_keys_for_long(
    start_etcd: Start, open_store: Open, admin: MakeAdmin, run_id: str
) -> None:
    server = start_etcd()
    root = admin(server)
    survivor = open_store(endpoint=server.get_endpoint())
    process = _member(server.get_endpoint(), run_id, member_ttl=2)
    _end(process)
    members = [key for key in root.stored() if "/member/" in key]
    assert len(members) == 2
    assert settles(lambda: len([key for key in root.stored() if "/member/" in key]) == 1)
    survivor.close()
    assert root.stored() == {}


def test_keys_can_be_kept_for_a_look(start_etcd: Start, open_store: Open, admin: MakeAdmin, run_id: str) -> None:
    server = start_etcd()
    root = admin(server)
    store = open_store(endpoint=server.get_endpoint(), keep="true", prefix="looked/at")
    store.put("key", b"value")
    store.close()
    kept = root.stored(f"looked/at/{run_id}/")
    assert any(key.endswith("/key/key") for key in kept)
    again = open_store(endpoint=server.get_endpoint(), prefix="looked/at")
    assert again.get(["key"]) == [None], "the next job does not read them"
    again.close()
    assert root.stored() == {}


def test_a_member_that_was_frozen_past_its_lease_comes_back(
    start_etcd: Start, open_store: Open, admin: MakeAdmin, run_id: str
) -> None:
    server = start_etcd()
    root = admin(server)
    other = open_store(endpoint=server.get_endpoint())
    process = _member(server.get_endpoint(), run_id, member_ttl=2)
    process.send_signal(signal.SIGSTOP)
    assert settles(lambda: len([key for key in root.stored() if "/member/" in key]) == 1)
    process.send_signal(signal.SIGCONT)
    assert settles(lambda: len([key for key in root.stored() if "/member/" in key]) == 2)
    process.communicate()
    assert process.returncode == 0
    other.close()
    assert root.stored() == {}


def test_an_operation_after_the_lease_has_ended_renews_it(
    open_store: Open, shared_etcd: EtcdServer, admin: MakeAdmin
) -> None:
    store, other = open_store(), open_store()
    assert store.add("count", 1) == 1
    admin(shared_etcd).call("Lease", "LeaseRevoke", ID=store._membership.member_lease)
    assert store.add("count", 1) == 2
    assert other.add("count", 1) == 3
    assert store._membership.member.decode() in admin(shared_etcd).stored()


def test_who_was_away_while_the_job_was_replaced_is_told(
    open_store: Open, shared_etcd: EtcdServer, admin: MakeAdmin
) -> None:
    old = open_store()
    old.put("key", b"old")
    root = admin(shared_etcd)
    # As if it had been cut off for longer than etcd remembers members.
    root.call("Lease", "LeaseRevoke", ID=old._membership.member_lease)
    new = open_store()
    for call in (lambda: old.put("key", b"x"), lambda: old.add("count", 1), lambda: old.get(["key"])):
        with pytest.raises(StoreLostError, match=r"another job has taken its place|were removed or have expired"):
            call()
    assert new.get(["key"]) == [None]
    assert new.add("count", 1) == 1
    old.close()
    assert new.get(["count"]) == [b"1"]


def test_who_lost_its_keys_is_told(open_store: Open, shared_etcd: EtcdServer, admin: MakeAdmin, run_id: str) -> None:
    store = open_store()
    start = f"quorate/{run_id}/".encode()
    admin(shared_etcd).call("KV", "DeleteRange", key=start, range_end=start[:-1] + b"0")
    with pytest.raises(StoreLostError, match="removed or have expired"):
        store.put("key", b"value")
    with pytest.raises(StoreLostError):
        store.wait("key", 60.0)


def test_members_that_come_and_go_at_once_agree_on_one_incarnation(
    open_store: Open, shared_etcd: EtcdServer, admin: MakeAdmin, run_id: str
) -> None:
    for _ in range(5):
        stores = [thread.result() for thread in [InThread(open_store) for _ in range(6)]]
        assert sorted(store.add("count", 1) for store in stores) == [1, 2, 3, 4, 5, 6]
        for thread in [InThread(store.close) for store in stores]:
            thread.result()
        assert admin(shared_etcd).stored(f"quorate/{run_id}/") == {}


def test_a_forked_child_refuses_and_harms_nobody(open_store: Open) -> None:
    store = open_store()
    store.put("key", b"value")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.get(["key"])
            os.write(write_end, b"it worked")
        except StoreLostError as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    said = os.read(read_end, 1000).decode()
    os.close(read_end)
    assert os.waitpid(child, 0)[1] == 0
    assert "forked" in said
    assert store.get(["key"]) == [b"value"]
    assert store.wait("key", 1.0) == b"value"
