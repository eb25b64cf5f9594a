"""The etcd that a job runs itself, with real members: how it begins, what it survives, and that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, final

import pytest

from quorate.errors import StoreUnavailableError, UsageError
from quorate.proc import is_alive
from quorate.rendezvous import RendezvousParameters, Write
from quorate.testing import free_port, settles
from quorate_rendezvous_etcd._hosted.life import Phase
from quorate_rendezvous_etcd._hosted.peers import cluster_token, initial_ids
from quorate_rendezvous_etcd._hosted.store import HostedEtcdStore, open_store

from .etcd_harness import DEADLINE_SECONDS, InThread

HOSTS = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


def free_ports() -> int:
    """Return a port that is free at all hosts, with the one behind it."""
    for _ in range(100):
        port = free_port()
        with suppress(OSError):
            for address in product(HOSTS, (port, port + 1)):
                with socket.socket() as other:
                    other.bind(address)
            return port
    raise AssertionError("no two free ports in a row")


@final
class Cluster:
    """Three agents' stores; ``open(index)`` opens one (again)."""

    def __init__(self, endpoint: str, run_id: str, **settings: Any) -> None:
        self.endpoint, self.run_id = endpoint, run_id
        self.settings = settings
        self.stores: dict[int, HostedEtcdStore] = {}
        #: What opening a store was told to wait for.
        self.told: list[str] = []

    def open(self, index: int | None, **settings: Any) -> HostedEtcdStore:
        more = {**self.settings, **settings}
        if index is not None:
            more["rank"] = index
        parameters = RendezvousParameters("etcd-hosted", self.endpoint, self.run_id, 1, 8, **more)
        parameters.on_waiting = self.told.append
        return open_store(parameters)

    def open_all(self) -> list[HostedEtcdStore]:
        threads = [InThread(self.open, index) for index in range(3)]
        for index, thread in enumerate(threads):
            self.stores[index] = thread.result()
        return list(self.stores.values())

    def pid(self, index: int) -> int:
        member = self.stores[index].member
        assert member is not None
        return member.pid

    def vanish(self, index: int) -> None:
        """End an agent and its member without a word, its disk included."""
        store = self.stores.pop(index)
        assert store.member is not None
        store._closed = True
        store._store.abandon()
        store.member.close(leaves=False)

    def voters(self, index: int) -> dict[str, int]:
        """Return the peer addresses and ids of the members that vote, as ``index`` lists them."""
        member = self.stores[index].member
        assert member is not None
        return {peer.peerURLs[0]: peer.ID for peer in member._open_cluster()._list().members if not peer.isLearner}

    def leader(self) -> int:
        """Return which member leads."""
        found: list[int] = []

        def look() -> bool:
            for index, store in self.stores.items():
                assert store.member is not None
                if store.member._open_cluster().own_id()[1]:
                    found.append(index)
            return bool(found)

        assert settles(look)
        return found[0]

    def close(self) -> None:
        """End all as a job's end does: nobody is told."""
        for thread in [InThread(self.vanish, index) for index in list(self.stores)]:
            thread.result()


@pytest.fixture
def cluster(nothing_left: None, run_id: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that is not there yet; nothing of it is left after the test."""
    cluster = Cluster(",".join(HOSTS) + f":{free_ports()}", run_id, data_dir=str(tmp_path))
    yield cluster
    cluster.close()
    assert list(tmp_path.iterdir()) == []


def test_three_agents_have_a_store_and_its_data_is_theirs_alone(cluster: Cluster, tmp_path: Path) -> None:
    first, second, third = cluster.open_all()
    assert first.create("key", b"value")
    assert second.wait("key", 5.0) == b"value"
    assert sorted(store.add("count", 1) for store in (first, second, third)) == [1, 2, 3]
    assert all(store.is_host for store in (first, second, third))
    peers = list(cluster.voters(0))
    ids, _ = initial_ids(sorted(peers), cluster_token(cluster.run_id))
    assert cluster.voters(0) == dict(zip(sorted(peers), ids, strict=True)), "as etcd derives them"
    folders = list(tmp_path.iterdir())
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * 3
    client = cluster.open(None)
    assert not client.is_host
    assert client.get(["key"]) == [b"value"]
    client.close()


def test_a_member_whose_process_is_killed_returns_with_its_disk(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    stores = cluster.open_all()
    leader = cluster.leader()
    before = cluster.voters(leader)
    stores[leader].put("key", b"value")
    pid = cluster.pid(leader)
    os.kill(pid, signal.SIGKILL)
    assert stores[leader].get(["key"]) == [b"value"], "another member answers"
    member = stores[leader].member
    assert member is not None
    assert settles(lambda: member.pid not in (0, pid) and member.is_serving)
    assert cluster.voters(leader) == before
    assert "has ended; it is started again" in capfd.readouterr().err


def test_all_members_killed_at_once_return(cluster: Cluster) -> None:
    """Their disks are there, so nothing is lost."""
    stores = cluster.open_all()
    stores[0].put("key", b"value")
    pids = [cluster.pid(index) for index in range(3)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    members = [store.member for store in stores]
    assert settles(lambda: all(it is not None and it.pid not in (0, *pids) and it.is_serving for it in members))
    assert stores[1].get(["key"]) == [b"value"]


def test_an_agent_that_comes_back_with_an_empty_disk_takes_its_place_as_another_member(cluster: Cluster) -> None:
    stores = cluster.open_all()
    stores[0].put("key", b"value")
    before = cluster.voters(0)
    cluster.vanish(2)
    assert stores[1].add("count", 1) == 1, "the others go on"
    cluster.stores[2] = again = cluster.open(2)
    assert again.get(["key"]) == [b"value"]
    assert again.member is not None
    assert again.member.state.phase is Phase.SERVING
    after = cluster.voters(0)
    assert after.keys() == before.keys()
    assert len(before.items() - after.items()) == 1, "only the one that came back has another id"
    cluster.vanish(0)
    assert again.add("count", 1) == 2, "and it counts for the quorum"


def test_a_member_that_is_lost_for_good_is_removed_and_may_return(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.settings["member_lost_timeout"] = 1
    stores = cluster.open_all()
    cluster.vanish(0)
    assert settles(lambda: len(cluster.voters(1)) == 2)
    said: list[str] = []

    def is_told() -> bool:
        """It is told once the removal has been answered, which may be later."""
        said.append(capfd.readouterr().err)
        return "goes on without its member" in "".join(said)

    assert settles(is_told)
    cluster.stores[0] = cluster.open(0)
    assert len(cluster.voters(1)) == 3
    assert stores[1].add("count", 1) == 1


def test_agents_may_leave_one_by_one_and_the_last_goes_on(cluster: Cluster) -> None:
    """Each is removed as it leaves, the leader included, so that those who stay need no vote of it."""
    stores = cluster.open_all()
    for left in (2, 1):
        index = cluster.leader()
        cluster.stores.pop(index).close()
        survivor = next(iter(cluster.stores))
        assert len(cluster.voters(survivor)) == left
        assert stores[survivor].add("count", 1) == 3 - left


def test_who_finds_all_names_taken_is_a_client(cluster: Cluster) -> None:
    cluster.open_all()
    client = cluster.open(None)
    assert not client.is_host
    client.close()
    with pytest.raises(UsageError, match=r"is_host is true.*none of"):
        cluster.open(0, is_host="true")


def test_without_most_members_the_message_says_what_is_missing(cluster: Cluster) -> None:
    with pytest.raises(StoreUnavailableError, match=r"was not there within 4 s: the member at .* is forming.*most of"):
        cluster.open(0, connect_timeout=4)
    others = r"127\.0\.0\.2:[0-9]+: .*refused.*127\.0\.0\.3:[0-9]+: .*refused"
    assert re.match(f"the job's etcd is not there yet: the member at .* is forming.*{others}", cluster.told[0])
    # What it has voted for is kept for the next attempt, which joins in.
    threads = [InThread(cluster.open, index) for index in (0, 1)]
    for index, thread in enumerate(threads):
        cluster.stores[index] = thread.result()
    assert cluster.stores[0].add("count", 1) == 1


_AGENT = """
import sys, ast
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd._hosted.store import open_store
settings = ast.literal_eval(sys.argv[3])
store = open_store(RendezvousParameters("etcd-hosted", sys.argv[1], sys.argv[2], 1, 8, **settings))
print(store.member.pid, flush=True)
sys.stdin.read()
store.close()
"""


@pytest.fixture
def start_agent(cluster: Cluster) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """``start_agent(index)`` → a process that runs the member ``index``, and tells its process id."""
    agents: list[subprocess.Popen[str]] = []

    def start(index: int) -> subprocess.Popen[str]:
        settings = repr({**cluster.settings, "rank": index})
        command = [sys.executable, "-c", _AGENT, cluster.endpoint, cluster.run_id, settings]
        agents.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return agents[-1]

    yield start
    for agent in agents:
        agent.kill()
        agent.communicate()


def test_a_killed_agents_member_ends_with_it(
    cluster: Cluster, start_agent: Callable[[int], subprocess.Popen[str]], tmp_path: Path
) -> None:
    agent = start_agent(0)
    opening = [InThread(cluster.open, index) for index in (1, 2)]
    for index, thread in zip((1, 2), opening, strict=True):
        cluster.stores[index] = thread.result()
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    agent.kill()
    agent.wait(DEADLINE_SECONDS)
    assert cluster.stores[1].add("count", 1) == 1
    assert settles(lambda: not is_alive(pid))
    assert settles(lambda: len(list(tmp_path.iterdir())) == 2)
    assert cluster.stores[2].add("count", 1) == 2


def test_the_last_words_of_an_agent_take_its_member_along(cluster: Cluster) -> None:
    """A member that ends with its agent is no loss that those who stay have to bear."""
    stores = cluster.open_all()
    index = cluster.leader()
    stores[index].last_word_writer()([Write("ended", b"killed", once=True)])
    survivors = [other for other in cluster.stores if other != index]
    assert stores[survivors[0]].get(["ended"]) == [b"killed"]
    assert settles(lambda: len(cluster.voters(survivors[0])) == 2)
