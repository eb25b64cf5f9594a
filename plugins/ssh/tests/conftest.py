"""The fixtures of a launch over a real sshd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import sshd as sshd_parts

from quorate.proc import environment_of
from quorate.testing import settles


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd_parts.Sshd]:
    reason = sshd_parts.why_not()
    if reason:
        pytest.skip(reason)
    server = sshd_parts.Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.close()


class Cluster:
    """Hosts behind a real sshd, and a folder that all of them share."""

    def __init__(self, server: sshd_parts.Sshd, folder: Path) -> None:
        self.server, self.folder, self.mark = server, folder, os.urandom(8).hex()
        self.launches: list[subprocess.Popen[str]] = []

    def begin(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        launch = self.server.popen(*arguments, mark=self.mark, folder=self.folder, **variables)
        self.launches.append(launch)
        return launch

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        launch = self.begin(*arguments, **variables)
        out, err = launch.communicate(timeout=sshd_parts.SECONDS)
        return subprocess.CompletedProcess(arguments, launch.returncode, out, err)

    def wait(self, is_true: Callable[[], object], what: str) -> None:
        assert settles(is_true, sshd_parts.SECONDS), what

    def left(self) -> list[int]:
        """Return the processes of this test that still run, wherever the connections have put them."""
        wanted = f"MARK={self.mark}".encode()
        return [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and int(name) != os.getpid() and wanted in environment_of(int(name)).split(b"\0")
        ]


@pytest.fixture
def cluster(_server: sshd_parts.Sshd, tmp_path: Path) -> Iterator[Cluster]:
    """Hosts; afterwards nothing that a launch has started may be left."""
    cluster = Cluster(_server, tmp_path)
    yield cluster
    for launch in cluster.launches:
        if launch.poll() is None:
            launch.kill()
        launch.communicate()
    cluster.wait(lambda: not cluster.left(), f"left behind: {cluster.left()}")
