"""Nodes on machines of their own (network namespaces): the addresses that they tell each other are reachable ones.

Each machine has a name, a file of hosts and a network of its own.  Skipped, with the reason, where namespaces cannot be
made.  What does not live here: losses of machines, and what one machine alone shows (``core/tests/test_addresses.py``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DEADLINE = 60.0
_BOOT = """\
set -e
hostname {name}
umount /etc/hosts 2>/dev/null || true  # tests/with-private-hosts has mounted a file over it that has no name
mount --bind {hosts} /etc/hosts
ip link set lo up
echo up
read network
ip link set {interface} up
ip address add {address}/24 dev {interface}
echo ready
read end
"""


#: Two workers meet as those of a collective do; the first closes its connections first, and the first round fails.
MEETS = """\
import os, socket, sys, time
there = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["RANK"] == "0":
    with socket.create_server(("", there[1])) as server:
        server.accept()[0].close()
else:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(there, 5) as client:
                assert client.recv(1) == b""
            break
        except ConnectionRefusedError:  # the other has only begun
            time.sleep(0.05)
print(os.environ["RANK"], "met at", "%s:%d" % there, flush=True)
sys.exit(1 - int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
"""


#: Lets nobody in but at two ports.
FIREWALL = """\
table inet wall {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established accept
    iif lo accept
    icmp type echo-request accept
    tcp dport { 29400, 29700 } accept
  }
}
"""


class Machine:
    """A machine with one interface; it goes when its standard input is closed."""

    def __init__(self, name: str, address: str, hosts: str, folder: Path) -> None:
        self.name, self.address, self.interface = name, address, f"net-{name}"
        self.variables: dict[str, str] = {}
        path = folder / f"hosts-{name}"
        path.write_text(f"127.0.0.1 localhost\n{hosts}\n")
        boot = _BOOT.format(name=name, hosts=path, interface=self.interface, address=address)
        self.process = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, word: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line != word:
            assert self.process.stderr is not None
            pytest.skip(f"namespaces cannot be made here: {self.process.stderr.read().strip()}")

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def inside(self) -> list[str]:
        return ["nsenter", f"--target={self.process.pid}", "--net", "--uts", "--mount", f"--wd={os.getcwd()}"]

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.inside(), sys.executable, "-m", "quorate", "run", *arguments],
            env={**os.environ, **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def do(self, script: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the system on this machine."""
        command = [*self.inside(), "sh", "-c", script]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=DEADLINE)

    def close(self) -> None:
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """Two machines on one network; each knows itself by a loopback address, as Debian writes it."""
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("namespaces cannot be made here: that needs root, ip, unshare and nsenter")
    made = [
        Machine("one", "10.77.0.1", "127.0.1.1 one\n10.77.0.2 two", tmp_path),
        Machine("two", "10.77.0.2", "10.77.0.1 one\n127.0.1.1 two", tmp_path),
    ]
    try:
        for machine in made:
            machine.says("up")
        first, second = made
        link = ["ip", "link", "add", first.interface, "netns", str(first.process.pid), "type", "veth"]
        peer = ["peer", "name", second.interface, "netns", str(second.process.pid)]
        linked = subprocess.run([*link, *peer], capture_output=True, text=True)
        if linked.returncode:
            pytest.skip(f"a pair of network interfaces cannot be made here: {linked.stderr.strip()}")
        for machine in made:
            machine.tell()
            machine.says("ready")
        yield made
    finally:
        for machine in made:
            machine.close()


SHOW = ("--no-python", "sh", "-c", 'echo "at $MASTER_ADDR over $GLOO_SOCKET_IFNAME $NCCL_SOCKET_IFNAME"; sleep 0.5')


def run_job(
    machines: list[Machine],
    *flags: str,
    first_only: tuple[str, ...] = (),
    second_only: tuple[str, ...] = (),
    program: tuple[str, ...] = SHOW,
) -> list[str]:
    agents = [
        machine.run("--nnodes=2", f"--node-rank={rank}", *flags, *extra, *program)
        for rank, (machine, extra) in enumerate(zip(machines, (first_only, second_only), strict=True))
    ]
    try:
        outputs = [agent.communicate(timeout=DEADLINE)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    return outputs


@pytest.mark.parametrize("backend", ["static", "tcp"])
def test_a_machine_whose_own_name_is_a_loopback_address_tells_the_others_its_real_one(
    machines: list[Machine], backend: str
) -> None:
    outputs = run_job(machines, f"--rdzv-backend={backend}", "--rdzv-endpoint=one:29400", "--rdzv-auth=off")
    for machine, output in zip(machines, outputs, strict=True):
        assert f"at 10.77.0.1 over {machine.interface} {machine.interface}" in output


def test_a_job_behind_a_firewall_uses_only_the_ports_that_it_was_given(machines: list[Machine], tmp_path: Path) -> None:
    """In the second round too, while connections of the first one still hold the only port that there is."""
    closed = machines[0].do("nft --file -", FIREWALL)
    if closed.returncode:
        pytest.skip(f"there is no firewall to be had here: {closed.stderr.strip()}")
    program = tmp_path / "meets.py"
    program.write_text(MEETS)
    flags = ("--rdzv-backend=tcp", "--rdzv-endpoint=one:29400", "--rdzv-auth=off", "--max-restarts=1")
    outputs = run_job(machines, *flags, "--master-port-range=29700", program=(str(program),))
    for rank, output in enumerate(outputs):
        assert re.findall(rf"{rank} met at \S+", output) == [f"{rank} met at 10.77.0.1:29700"] * 2, output


def test_who_cannot_reach_the_first_node_says_so_with_the_address(machines: list[Machine]) -> None:
    flags = ("--rdzv-backend=tcp", "--rdzv-endpoint=one:29400", "--rdzv-auth=off")
    _, second = run_job(machines, *flags, first_only=("--local-addr=10.99.0.9",))
    assert re.search(
        r"this node \(two\) cannot reach the first node at MASTER_ADDR=10\.99\.0\.9: .*unreachable", second
    )


def test_a_local_address_is_found_by_its_interface_or_its_network(machines: list[Machine]) -> None:
    flags = ("--rdzv-backend=tcp", "--rdzv-endpoint=one:29400", "--rdzv-auth=off")
    for local in (machines[0].interface, "10.77.0.0/16"):
        outputs = run_job(machines, *flags, first_only=(f"--local-addr={local}",))
        assert all("at 10.77.0.1 over" in output for output in outputs)


def test_collectives_use_the_interface_of_the_local_address_and_what_is_set_stays(machines: list[Machine]) -> None:
    """``--master-addr`` is a name here, which the first machine takes for its loopback address."""
    second = machines[1]
    made = second.do(
        "ip link add fast type veth peer name fast-peer && ip link set fast up && ip address add 10.88.0.2/24 dev fast"
    )
    if made.returncode:
        pytest.skip(f"a second interface cannot be made here: {made.stderr.strip()}")
    program = ("--no-python", "sh", "-c", 'echo "over $GLOO_SOCKET_IFNAME $NCCL_SOCKET_IFNAME at $MASTER_ADDR"')
    flags = ("--master-addr=one", "--rdzv-auth=off")
    outputs = run_job(machines, *flags, second_only=("--local-addr=fast",), program=program)
    assert "over net-one net-one at one" in outputs[0]
    assert "over fast fast at one" in outputs[1]
    machines[0].variables = {"GLOO_SOCKET_IFNAME": "mine"}
    outputs = run_job(machines, *flags, second_only=("--local-addr=10.88.0.0/16",), program=program)
    assert "over mine net-one at one" in outputs[0]
    assert "over fast fast at one" in outputs[1]
