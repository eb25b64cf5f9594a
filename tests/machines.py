"""Machines of their own (network namespaces with a name and a file of hosts), which the tests join.

Tests that use them are skipped, with the reason, where namespaces cannot be made.  What does not live here: networks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["DEADLINE", "Machine", "two_machines"]

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

    def begin(self) -> None:
        """Give the interface, which is there now, its address."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.says("ready")

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


@contextmanager
def two_machines(folder: Path) -> Iterator[list[Machine]]:
    """Make the machines ``one`` (10.77.0.1) and ``two`` (10.77.0.2); they wait for their interfaces."""
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("namespaces cannot be made here: that needs root, ip, unshare and nsenter")
    made = [
        Machine("one", "10.77.0.1", "127.0.1.1 one\n10.77.0.2 two", folder),
        Machine("two", "10.77.0.2", "10.77.0.1 one\n127.0.1.1 two", folder),
    ]
    try:
        for machine in made:
            machine.says("up")
        yield made
    finally:
        for machine in made:
            machine.close()
