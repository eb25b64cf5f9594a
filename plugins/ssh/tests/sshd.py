"""A real sshd on this machine's loopback, with keys of its own, and several names for it.  No tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from quorate.clock import monotonic, sleep
from quorate.testing import free_port

SECONDS = 60.0
#: Names of hosts, and the addresses of this machine that they stand for.
ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3", "d": "127.0.0.4"}
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def why_not() -> str:
    """Return why no sshd can be started here, ``""`` if one can."""
    missing = [name for name, path in {"sshd": SSHD, "ssh": shutil.which("ssh")}.items() if path is None]
    return f"{' and '.join(missing)} not installed (make sshd)" if missing else ""


class Sshd:
    """A running server, and the client's configuration for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "client.pub", folder / "authorized")
        self.port = free_port()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 0.0.0.0\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            f"PidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nMaxStartups 100\n"
            "PermitRootLogin yes\nUseDNS no\nAcceptEnv MARK_*\n"
        )
        hosts = "".join(f"Host {name}\n  HostName {address}\n" for name, address in ADDRESSES.items())
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"{hosts}Host nowhere\n  HostName 127.0.0.9\n  Port 1\n"
            f"Host bare\n  HostName 127.0.0.1\n  RemoteCommand none\n"
            # A person's forwarding: a port that can be listened on once, though there are two hosts.
            f"Host a b\n  LocalForward {free_port()} 127.0.0.1:1\n  ExitOnForwardFailure yes\n"
            f"Host *\n  Port {self.port}\n  IdentityFile {folder}/client\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
        )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        self.log = open(folder / "sshd.log", "wb")  # noqa: SIM115 - closed below
        assert SSHD is not None
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=self.log
        )
        deadline = monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert monotonic() < deadline, (folder / "sshd.log").read_text()
                assert self.process.poll() is None, (folder / "sshd.log").read_text()
                sleep(0.02)  # nothing announces a port that is listened on

    def popen(self, *arguments: str, mark: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
        """Start ``quorate run`` with this server; ``mark`` is in the environment of all that it starts."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PET_", "QUORATE", "SLURM"))
        }
        # A shell's & has SIGINT ignored, and what is ignored stays ignored.
        command = ["env", "--default-signal=INT,HUP"]
        command += [sys.executable, "-m", "quorate", "run", f"--ssh-command=ssh -F {self.config}", *arguments]
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "MARK": mark, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(SECONDS)
        self.log.close()
