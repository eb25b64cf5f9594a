"""Nodes on machines of their own (network namespaces): the addresses that they tell each other are reachable ones.

Each machine has a name, a file of hosts and a network of its own.  Skipped, with the reason, where namespaces cannot be
made.  What does not live here: losses of machines, and what one machine alone shows (``core/tests/test_addresses.py``).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machines import DEADLINE, Machine, two_machines

#: Two workers meet as those of a collective do; the first closes its connections first, and the first round fails.
MEETS = """\
import os, socket, sys, time
there = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
def say():  # before either of the two ends, for the other is stopped then
    print(os.environ["RANK"], "met at", "%s:%d" % there, flush=True)
if os.environ["RANK"] == "0":
    with socket.create_server(("", there[1])) as server:
        while (client := server.accept()[0]).recv(1) != b"x":
            pass  # an agent that looks whether this port can be reached
        say()
        client.close()
else:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(there, 5) as client:
                say()
                client.send(b"x")
                assert client.recv(1) == b""
            break
        except ConnectionRefusedError:  # the other has only begun
            time.sleep(0.05)
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


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """Two machines on one network; each knows itself by a loopback address, as Debian writes it."""
    with two_machines(tmp_path) as made:
        first, second = made
        link = ["ip", "link", "add", first.interface, "netns", str(first.process.pid), "type", "veth"]
        peer = ["peer", "name", second.interface, "netns", str(second.process.pid)]
        linked = subprocess.run([*link, *peer], capture_output=True, text=True)
        if linked.returncode:
            pytest.skip(f"a pair of network interfaces cannot be made here: {linked.stderr.strip()}")
        for machine in made:
            machine.begin()
        yield made


#: Lets one port of the machine through; what it has opened itself gets its answers.
ONE_PORT = """\
table inet only {{ chain input {{ type filter hook input priority 0; policy accept;
    iifname lo accept; ct state established,related accept; tcp dport {port} accept; meta l4proto tcp {verdict}
}}
}}
"""
#: Rank 0 serves at MASTER_PORT as a TCPStore does, the other comes there; rank 1 of the first round then fails.
MEETING = """\
import os, socket, sys, time
where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["RANK"] == "0":
    with socket.create_server(("", where[1])) as server:
        while server.accept()[0].recv(1) != b"x":
            pass  # an agent that looks whether this port can be reached, or rank 1 before it fails
else:
    while True:
        try:
            connection = socket.create_connection(where)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        sys.exit(3)
    connection.send(b"x")
print("met at port", where[1], "in attempt", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
"""


@pytest.mark.parametrize("verdict", ["drop", "reject with tcp reset", "accept"])
def test_static_needs_one_port(machines: list[Machine], tmp_path: Path, verdict: str) -> None:
    """Nodes and workers meet on it in turn, in each round anew."""
    if shutil.which("nft") is None:
        pytest.skip("a firewall cannot be made here: that needs nft")
    for machine, port in zip(machines, (29500, 1), strict=True):
        rules = ONE_PORT.format(port=port, verdict=verdict)
        enter = ["nsenter", f"--target={machine.process.pid}", "--net", "nft", "-f", "-"]
        made = subprocess.run(enter, input=rules, capture_output=True, text=True)
        assert "syntax error" not in made.stderr
        if made.returncode:
            pytest.skip(f"a firewall cannot be made here: {made.stderr.strip()}")
    program = tmp_path / "meeting.py"
    program.write_text(MEETING)
    agents = [
        machine.run("--nnodes=2", f"--node-rank={rank}", "--master-addr=10.77.0.1", "--max-restarts=1", str(program))
        for rank, machine in enumerate(machines)
    ]
    try:
        outputs = [agent.communicate(timeout=DEADLINE)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.communicate()
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert all("met at port 29500 in attempt 1" in output for output in outputs), outputs


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
        pytest.skip(f"no firewall can be made here: {closed.stderr.strip()}")
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
