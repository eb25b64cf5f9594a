"""Launches over ssh between network namespaces: a laptop and three machines with a real sshd each, at one switch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sshd as sshd_parts

from quorate.proc import environment_of
from quorate.testing import settles

WORKER = str(Path(__file__).with_name("ssh_worker.py"))
SECONDS = 90.0


class Machines:
    """Three machines and a laptop (number 0) at 10.77.0.N, in namespaces that end with this object."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix, self.mark = folder, f"q{os.getpid()}-", os.urandom(8).hex()
        self.servers: list[subprocess.Popen[bytes]] = []
        self._ip("netns", "add", f"{self.prefix}s")
        self._ip("-n", f"{self.prefix}s", "link", "add", "br0", "type", "bridge")
        self._ip("-n", f"{self.prefix}s", "link", "set", "br0", "up")
        for number in range(4):
            name = f"{self.prefix}{number}"
            self._ip("netns", "add", name)
            self._ip(
                "-n", f"{self.prefix}s", "link", "add", f"v{number}", "type", "veth", "peer", "eth0", "netns", name
            )
            self._ip("-n", f"{self.prefix}s", "link", "set", f"v{number}", "up", "master", "br0")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "eth0", "up")
            self._ip("-n", name, "address", "add", f"10.77.0.{number}/24" if number else "10.77.0.9/24", "dev", "eth0")
        self._keys()
        for number in range(1, 4):
            self._serve(number)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=SECONDS)

    def _keys(self) -> None:
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True, timeout=SECONDS)
        (self.folder / "ssh_config").write_text(
            "".join(f"Host m{number}\n  HostName 10.77.0.{number}\n" for number in range(1, 4))
            + f"Host *\n  Port 2222\n  IdentityFile {self.folder}/client\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
            f"  UserKnownHostsFile {self.folder}/known\n  StrictHostKeyChecking no\n"
        )

    def _serve(self, number: int) -> None:
        config = self.folder / f"sshd-{number}"
        config.write_text(
            f"Port 2222\nHostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/client.pub\n"
            f"UsePAM no\nUseDNS no\nPidFile {self.folder}/pid-{number}\nStrictModes no\nPermitRootLogin yes\n"
        )
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        assert sshd_parts.SSHD is not None
        command = [*self.inside(number), sshd_parts.SSHD, "-D", "-f", str(config)]
        self.servers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.wait((self.folder / f"pid-{number}").exists, "sshd does not start")

    def inside(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}{number}"]

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        ssh = f"--ssh-command=ssh -F {self.folder}/ssh_config"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM", "QUORATE"))}
        return subprocess.Popen(
            [*self.inside(0), sys.executable, "-m", "quorate", "run", ssh, *arguments],
            cwd=self.folder,
            env={**own, "MARK": self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cut(self, number: int) -> None:
        """Take a machine off the switch: nothing that was sent to it gets there, and nothing says so."""
        self._ip("-n", f"{self.prefix}s", "link", "set", f"v{number}", "nomaster")

    def wait(self, is_true: Callable[[], object], what: str) -> None:
        assert settles(is_true, SECONDS), what

    def left(self) -> list[int]:
        wanted = f"MARK={self.mark}".encode()
        return [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and wanted in environment_of(int(name)).split(b"\0")
        ]

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            server.wait()
        for name in ("s", *"0123"):
            subprocess.run(["ip", "netns", "delete", f"{self.prefix}{name}"], capture_output=True, timeout=SECONDS)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    reason = sshd_parts.why_not()
    if reason:
        pytest.skip(reason)
    probe = subprocess.run(["ip", "netns", "add", f"q{os.getpid()}"], capture_output=True)
    if probe.returncode:
        pytest.skip("network namespaces cannot be made here (they need root)")
    subprocess.run(["ip", "netns", "delete", f"q{os.getpid()}"], capture_output=True)
    machines = Machines(tmp_path)
    yield machines
    machines.wait(lambda: not machines.left(), "processes are left")
    machines.close()


@pytest.mark.slow  # a dead network says nothing: both sides wait for a sign of life
def test_machines_meet_and_a_cut_link_leaves_nothing_on_either_side(machines: Machines) -> None:
    done = machines.popen("--hosts=m1,m2,m3", WORKER, "where")
    out, err = done.communicate(timeout=SECONDS)
    assert done.returncode == 0, err
    assert sorted(line.split(" rank")[0] for line in out.splitlines()) == ["[m1 0]", "[m2 1]", "[m3 2]"]
    assert "meets at 10.77.0.1:" in err
    for path in machines.folder.glob("worker-*"):
        path.unlink()
    launch = machines.popen("--hosts=m1,m2,m3", WORKER, "until")
    machines.wait(lambda: len(list(machines.folder.glob("worker-*"))) == 3, "the workers do not start")
    machines.cut(3)
    _, err = launch.communicate(timeout=SECONDS)
    assert launch.returncode == 3, err
    assert "m3 is lost" in err
    machines.wait(lambda: not machines.left(), "the machine behind the cut link goes on")
