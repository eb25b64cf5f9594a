"""What becomes of a job whose agents are killed and whose machines are cut off: whole jobs of real processes.

Nodes are agents on loopback addresses, or in network namespaces that nftables cuts off, where this machine has them.
The lease is longer than any test may take, unless the lease is the subject: what happens, happens without it.  Option
of the environment ``QUORATE_TEST_TRIALS``: how often the random trials run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import final

import pytest

from quorate.files import read_bytes
from quorate.proc import children_of, is_alive
from quorate.testing import free_port, settles
from tests.backends import BACKENDS, Backend
from tests.harness import DEADLINE
from tests.nodes import ROOT, Nodes

LONG_LEASE = 45
TRIALS = int(os.environ.get("QUORATE_TEST_TRIALS", "1"))


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    """``make_nodes(backend, endpoint, nodes, **conf)`` → Nodes; nothing of them is left after the test."""
    made: list[Nodes] = []

    def make(backend: str, endpoint: str, nodes: str, **conf: object) -> Nodes:
        made.append(Nodes(tmp_path, backend, endpoint, nodes, **conf))
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()
    # A killed agent's member of etcd, and the shell that removes its folder, outlive it for a moment.
    assert settles(lambda: not list(tmp_path.glob("quorate-etcd-*")), 15.0)


def hosted_endpoint() -> str:
    """Return three names of this machine, with ports that are free there."""
    for _ in range(100):
        port = free_port()
        with socket.socket() as second, suppress(OSError):
            second.bind(("127.0.0.1", port + 1))
            return f"127.0.0.1,127.0.0.2,127.0.0.3:{port}"
    raise AssertionError("no two free ports in a row")


# --- agents that are killed -----------------------------------------------------------------------------------------


def children_with(agent: subprocess.Popen[bytes], word: bytes) -> list[int]:
    """Return the children of ``agent`` that have ``word`` in their command line."""
    return [pid for pid in children_of(agent.pid) if word in read_bytes(f"/proc/{pid}/cmdline")]


def test_a_killed_agent_is_known_at_once(backend: Backend, make_nodes: Callable[..., Nodes]) -> None:
    """Over every backend, and the survivors are told that it was killed."""
    # The tcp server leaves the word to the guardian, which is slow to start on a busy machine.
    own: dict[str, object] = {"return_timeout": DEADLINE} if backend.name == "tcp" else {}
    with backend.fresh_endpoint() as endpoint:
        nodes = make_nodes(backend.name, endpoint, "1:2", lease_timeout=LONG_LEASE, last_call_timeout=DEADLINE, **own)
        first = nodes.start(0, is_host="true")
        second = nodes.start(1, is_host="false")
        nodes.wait_for_world(2)
        second.kill()
        nodes.wait_for_world(1)
        nodes.finish([first])
        assert "is lost: its agent was killed" in nodes.said(0)


def test_a_killed_agent_with_its_guardian_is_missed_by_the_tcp_store(make_nodes: Callable[..., Nodes]) -> None:
    """As when a container is killed with all that is in it."""
    with BACKENDS["tcp"].fresh_endpoint() as endpoint:
        conf = {"lease_timeout": LONG_LEASE, "last_call_timeout": DEADLINE, "return_timeout": 0.2}
        nodes = make_nodes("tcp", endpoint, "1:2", **conf)
        first = nodes.start(0, is_host="true")
        second = nodes.start(1, is_host="false")
        nodes.wait_for_world(2)
        (guardian,) = children_with(second, b"_last_word_program")
        os.kill(guardian, signal.SIGKILL)
        second.kill()
        nodes.wait_for_world(1)
        nodes.finish([first])
        assert "were closed without a goodbye, and it did not come back within 0.2 s" in nodes.said(0)


def test_a_guardian_ends_with_its_agent_and_says_nothing_for_one_that_left(make_nodes: Callable[..., Nodes]) -> None:
    with BACKENDS["tcp"].fresh_endpoint() as endpoint:
        nodes = make_nodes("tcp", endpoint, "1:2", lease_timeout=LONG_LEASE, last_call_timeout=DEADLINE)
        first = nodes.start(0, is_host="true")
        second = nodes.start(1, is_host="false")
        nodes.wait_for_world(2)
        (guardian,) = children_with(second, b"_last_word_program")
        second.terminate()
        second.wait(DEADLINE)
        assert not is_alive(guardian)
        nodes.wait_for_world(1)
        nodes.finish([first])
        assert "is lost" not in nodes.said(0)


# --- the store's host -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tcp", "c10d"])
def test_a_drained_host_of_the_store_ends_the_job(name: str, make_nodes: Callable[..., Nodes]) -> None:
    """Not "a new round, at no cost", which would die with the store."""
    with BACKENDS[name].fresh_endpoint() as endpoint:
        nodes = make_nodes(name, endpoint, "1:2", lease_timeout=LONG_LEASE, last_call_timeout=DEADLINE)
        first = nodes.start(0, is_host="true")
        second = nodes.start(1, is_host="false")
        nodes.wait_for_world(2)
        first.terminate()
        assert second.wait(DEADLINE) == 1, nodes.story()
        assert first.wait(DEADLINE) == 128 + signal.SIGTERM
        assert "it hosts the rendezvous store, which ends with it" in nodes.said(1)
        assert "at no cost" not in nodes.said(1)


def test_too_few_nodes_are_not_told_as_a_lost_store(make_nodes: Callable[..., Nodes]) -> None:
    """The host of the store gives up first: the other one learns why, and not only that the store has gone."""
    with BACKENDS["tcp"].fresh_endpoint() as endpoint:
        nodes = make_nodes("tcp", endpoint, "3")
        first = nodes.start(0, is_host="true", join_timeout=6)
        second = nodes.start(1, is_host="false", join_timeout=DEADLINE)
        codes = first.wait(DEADLINE), second.wait(DEADLINE)
        assert codes == (3, 3), nodes.story()
        assert "of 3 nodes joined" in nodes.said(1), nodes.story()
        assert "which hosts the rendezvous store, has given up" in nodes.said(1)


def test_who_cannot_learn_what_became_of_the_others_says_so(make_nodes: Callable[..., Nodes]) -> None:
    """Its workers have succeeded; the host of the store is killed before its own are done."""
    with BACKENDS["tcp"].fresh_endpoint() as endpoint:
        nodes = make_nodes("tcp", endpoint, "2", lease_timeout=LONG_LEASE)
        done = nodes.folder / "done"
        nodes.worker.write_text(
            f'echo "$RANK $WORLD_SIZE $GROUP_RANK" >> {nodes.lines}\n[ $RANK = 1 ] || sleep 100\ntouch {done}\n'
        )
        first = nodes.start(0, is_host="true")
        second = nodes.start(1, is_host="false")
        nodes.wait_for_world(2)
        assert settles(done.exists)
        assert settles(lambda: not children_with(second, b"worker.sh"))
        first.kill()
        assert second.wait(DEADLINE) == 6, nodes.story()
        assert "what became of the other nodes is unknown" in nodes.said(1)


# --- a job with its own etcd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["gather", "run"])
def test_a_job_with_its_own_etcd_survives_any_agent(phase: str, make_nodes: Callable[..., Nodes]) -> None:
    """Each of the three is killed once: the first too, whose loss ends a job over tcp and c10d."""
    nodes = make_nodes("etcd-hosted", hosted_endpoint(), "2:3", lease_timeout=LONG_LEASE, last_call_timeout=2)
    agents = [nodes.start(rank) for rank in range(3)]
    if phase == "gather":
        assert settles(lambda: len(list(nodes.folder.glob("quorate-etcd-*"))) == 3 or nodes.has_world(3))
    else:
        nodes.wait_for_world(3)
    agents[0].kill()
    nodes.wait_for_world(2)
    again = nodes.start(0)
    nodes.wait_for_world(3, 1 if phase == "gather" else 2)
    nodes.finish([again, *agents[1:]])


def test_nothing_is_left_of_a_job_with_its_own_etcd(make_nodes: Callable[..., Nodes]) -> None:
    nodes = make_nodes("etcd-hosted", hosted_endpoint(), "3")
    agents = [nodes.start(rank) for rank in range(3)]
    nodes.wait_for_world(3)
    nodes.finish(agents)
    assert nodes.processes() == []
    assert not list(nodes.folder.glob("quorate-etcd-*"))


def test_two_agents_of_three_leave_and_the_last_goes_on(make_nodes: Callable[..., Nodes]) -> None:
    """Their members leave with them, so that the one that stays needs no quorum of three."""
    nodes = make_nodes("etcd-hosted", hosted_endpoint(), "1:3", lease_timeout=LONG_LEASE, last_call_timeout=2)
    agents = [nodes.start(rank) for rank in range(3)]
    nodes.wait_for_world(3)
    agents[0].terminate()
    nodes.wait_for_world(2)
    agents[0].wait(DEADLINE)
    agents[1].kill()
    nodes.wait_for_world(1)
    nodes.finish([agents[2]])


def test_a_node_that_was_frozen_learns_the_jobs_end_from_its_own_etcd(
    make_nodes: Callable[..., Nodes],
) -> None:
    """The others are gone when it goes on, and nobody answers it any more."""
    nodes = make_nodes("etcd-hosted", hosted_endpoint(), "2:3", lease_timeout=2, last_call_timeout=2)
    agents = [nodes.start(rank) for rank in range(3)]
    nodes.wait_for_world(3)
    agents[2].send_signal(signal.SIGSTOP)
    nodes.wait_for_world(2)
    nodes.finish(agents[:2])
    agents[2].send_signal(signal.SIGCONT)
    assert agents[2].wait(DEADLINE) == 0, nodes.story()


# --- machines that are cut off --------------------------------------------------------------------------------------


@final
class Machines:
    """Three network namespaces on one bridge; nftables decides which of them is cut off."""

    def __init__(self) -> None:
        self.tag = os.urandom(2).hex()
        self.names = [f"q{self.tag}{index}" for index in range(3)]
        self.addresses = [f"10.231.7.{index + 1}" for index in range(3)]
        self.bridge = f"qb{self.tag}"
        _ip("netns", "add", self.bridge)
        self._in(self.bridge, "link", "add", "b0", "type", "bridge")
        self._in(self.bridge, "link", "set", "b0", "up")
        for index, name in enumerate(self.names):
            _ip("netns", "add", name)
            self._in(name, "link", "set", "lo", "up")
            self._in(self.bridge, "link", "add", f"v{index}", "type", "veth", "peer", "name", "e0", "netns", name)
            self._in(self.bridge, "link", "set", f"v{index}", "master", "b0", "up")
            self._in(name, "addr", "add", f"{self.addresses[index]}/24", "dev", "e0")
            self._in(name, "link", "set", "e0", "up")

    def _in(self, name: str, *words: str) -> None:
        _ip("-n", name, *words)

    def prefix(self, index: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.names[index])

    def cut(self, index: int) -> None:
        """Drop all packets from and to a machine, without a word to either side."""
        rules = (
            "table inet cut {\n"
            ' chain in { type filter hook input priority 0; iifname "e0" drop; }\n'
            ' chain out { type filter hook output priority 0; oifname "e0" drop; }\n'
            "}\n"
        )
        subprocess.run([*self.prefix(index), "nft", "-f", "-"], input=rules.encode(), check=True)

    def mend(self, index: int) -> None:
        subprocess.run([*self.prefix(index), "nft", "delete", "table", "inet", "cut"], check=True)

    def close(self) -> None:
        for name in (*self.names, self.bridge):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed, which cuts machines off (make machines)")
    try:
        made = Machines()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this user cannot make network namespaces: {error.stderr.decode().strip()}")
    yield made
    made.close()


def lose(how: str, victim: int, agent: subprocess.Popen[bytes], machines: Machines) -> None:
    if how == "killed":
        agent.kill()
    elif how == "frozen":
        agent.send_signal(signal.SIGSTOP)
    else:
        machines.cut(victim)


def give_back(how: str, victim: int, agent: subprocess.Popen[bytes], machines: Machines) -> None:
    if how == "frozen":
        agent.send_signal(signal.SIGCONT)
    elif how == "cut off":
        machines.mend(victim)


@pytest.mark.slow(reason="leases and elections are waited for")
@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("how", ["killed", "cut off", "frozen"])
def test_three_machines_survive_any_one_of_them(
    how: str, trial: int, machines: Machines, make_nodes: Callable[..., Nodes]
) -> None:
    """Whichever it is, the etcd's leader included: the others go on, and it joins again where it can."""
    seed = random.randrange(1 << 32) if TRIALS > 1 else 0
    source = random.Random(seed)
    endpoint = ",".join(machines.addresses) + ":2379"
    nodes = make_nodes("etcd-hosted", endpoint, "2:3", lease_timeout=2, last_call_timeout=2)
    agents = [nodes.start(rank, machines.prefix(rank)) for rank in range(3)]
    nodes.wait_for_world(3)
    small, full = nodes.count_worlds(2), nodes.count_worlds(3)  # one that was late makes the first world a small one
    victim = source.randrange(3)
    survivors = [agent for index, agent in enumerate(agents) if index != victim]
    time.sleep(source.random() if TRIALS > 1 else 0.0)  # at any moment of the round
    lose(how, victim, agents[victim], machines)
    nodes.wait_for_world(2, small + 1)
    give_back(how, victim, agents[victim], machines)
    if how != "killed":
        nodes.wait_for_world(3, full + 1)
        survivors = agents
    nodes.finish(survivors)
    print(f"seed {seed}")


@pytest.mark.slow(reason="it trains for two minutes")
@pytest.mark.timeout(600)
@pytest.mark.skipif(TRIALS == 1, reason="a part of the trials (make trials)")
def test_two_minutes_of_training_survive_every_kind_of_loss(
    machines: Machines, make_nodes: Callable[..., Nodes]
) -> None:
    """Each machine is lost in another way, and given back when the others have trained on without it."""
    nodes = make_nodes(
        "etcd-hosted", ",".join(machines.addresses) + ":2379", "2:3", lease_timeout=2, last_call_timeout=2
    )
    epochs, output = 240, nodes.folder / "output"
    with open(nodes.worker, "w") as file:
        file.write(f'echo "$RANK $WORLD_SIZE $GROUP_RANK" >> {nodes.lines}\n')
        file.write(f"exec {sys.executable} {ROOT}/examples/digits_ddp/train.py")
        file.write(f" --epochs {epochs} --epoch-seconds 0.5 --output {output}\n")
    agents = [nodes.start(rank, machines.prefix(rank)) for rank in range(3)]

    def wait_for_epoch(number: int) -> int:
        """Wait until so many epochs are trained; return how many are."""
        done = output / f"checkpoints/epoch-{number:04d}.pt"
        assert settles(done.exists, 2 * DEADLINE), nodes.story()
        return len(list(done.parent.glob("epoch-*.pt")))

    for victim, how in enumerate(["cut off", "killed", "frozen"]):
        done = wait_for_epoch(10 + epochs * victim // 4)
        small, full = nodes.count_worlds(2), nodes.count_worlds(3)
        lose(how, victim, agents[victim], machines)
        nodes.wait_for_world(2, small + 1)
        wait_for_epoch(done + 5)
        give_back(how, victim, agents[victim], machines)
        if how == "killed":
            agents[victim] = nodes.start(victim, machines.prefix(victim))
        nodes.wait_for_world(3, full + 1)
    wait_for_epoch(epochs)
    nodes.finish(agents)
    result = json.loads((output / "result.json").read_text())
    assert [entry["epoch"] for entry in result["history"]] == [*range(1, epochs + 1)]
    assert {entry["world_size"] for entry in result["history"]} == {2, 3}
    assert result["accuracy"] > 0.9


#: Rank 0 writes a line every few milliseconds, also while it has a grace, as one that saves its work does.
WRITER = """
import os, signal, time
here = f"{os.getpid()} {os.environ['QUORATE_GENERATION']} {os.environ['WORLD_SIZE']} {os.environ['MASTER_ADDR']}\\n"
until = [float("inf")]
signal.signal(signal.SIGTERM, lambda *_: until.__setitem__(0, time.monotonic() + 1.0))
file = os.open("FILE", os.O_APPEND | os.O_WRONLY | os.O_CREAT)
while time.monotonic() < until[0] and not os.path.exists("GATE"):
    if os.environ["RANK"] == "0":
        os.write(file, here.encode())
    time.sleep(0.005)
"""


def newest_world(nodes: Nodes) -> tuple[int, int, int]:
    """Return the newest generation, how many workers it has, and how many of them have started."""
    found = [line.split() for line in nodes.lines.read_text().splitlines()]
    newest = max(int(line[3]) for line in found)
    sizes = [int(line[1]) for line in found if int(line[3]) == newest]
    return newest, sizes[0], len(sizes)


def writers(text: str) -> list[str]:
    """Return who wrote, in order, each as often as it took over from another."""
    lines = text.splitlines()
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line != before]


@pytest.mark.slow(reason="leases are waited for")
@pytest.mark.parametrize("trial", range(max(1, TRIALS // 10)))
@pytest.mark.parametrize("when_cut_off", ["freeze", "stop"])
def test_no_two_ranks_zero_run_at_once(
    when_cut_off: str, trial: int, machines: Machines, make_nodes: Callable[..., Nodes]
) -> None:
    """Machines are cut off for about a lease, mostly that of rank 0: who has been replaced never writes again."""
    seed = random.randrange(1 << 32) if TRIALS > 1 else 1
    source = random.Random(seed)
    conf = {"lease_timeout": 3, "last_call_timeout": 2, "when_cut_off": when_cut_off}
    nodes = make_nodes("etcd-hosted", ",".join(machines.addresses) + ":2379", "2:3", **conf)
    written = nodes.folder / "written"
    program = WRITER.replace("FILE", str(written)).replace("GATE", str(nodes.gate))
    (nodes.folder / "writer.py").write_text(program)
    with open(nodes.worker, "w") as file:
        file.write(f'echo "$RANK $WORLD_SIZE $GROUP_RANK $QUORATE_GENERATION" >> {nodes.lines}\n')
        file.write(f"exec {sys.executable} -S {nodes.folder}/writer.py\n")
    agents = [nodes.start(rank, machines.prefix(rank)) for rank in range(3)]
    nodes.wait_for_world(3)
    for number in range(min(10, TRIALS)):
        size = written.stat().st_size if written.exists() else 0
        assert settles(lambda size=size: written.exists() and written.stat().st_size > size + 100), nodes.story()
        first = machines.addresses.index(written.read_text().splitlines()[-1].split()[-1])
        victim = first if number == 0 or source.random() < 0.7 else source.randrange(3)
        machines.cut(victim)
        longer = source.choice([(0.5, 2.5), (2.5, 4.0), (4.0, 7.0)]) if TRIALS > 1 else (4.5, 4.5)
        time.sleep(source.uniform(*longer))
        machines.mend(victim)
        time.sleep(source.choice([0.0, 0.5, 2.0]) if TRIALS > 1 else 0.0)
    size = written.stat().st_size

    def is_whole() -> bool:
        """Rank 0 of a world of three has begun to write, or goes on."""
        *_, generation, of, _ = written.read_text().splitlines()[-1].split()
        is_newest = newest_world(nodes) == (int(generation), 3, 3)
        return written.stat().st_size > size + 100 and is_newest and of == "3"

    assert settles(is_whole), nodes.story()
    nodes.finish(agents)
    order = writers(written.read_text())
    assert len(order) == len(set(order)), f"seed {seed}: {order}\n{nodes.story()}"
    assert len(order) > 1, nodes.story()
    print(f"seed {seed}: {len(order)} ranks 0, one after the other")
