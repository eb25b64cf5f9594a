"""``Nodes``: the agents of one job as processes of ``quorate run``, with workers that start in no time.

What does not live here: agents that tests talk to (``harness``), and machines of their own (``machines``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import final

from quorate.proc import environment_of
from quorate.testing import settles
from tests.harness import DEADLINE, wait_for_end

__all__ = ["Nodes", "file_store_environment"]

ROOT = str(Path(__file__).resolve().parent.parent)


def file_store_environment(folder: Path) -> dict[str, str]:
    """Return variables with which agents have the backend ``file``, an example that is not installed here."""
    info = folder / "plugin" / "quorate_rendezvous_file-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quorate-rendezvous-file\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[quorate]\nfile = quorate_rendezvous_file:plugin\n")
    return {"PYTHONPATH": os.pathsep.join([str(info.parent), f"{ROOT}/docs/examples/rendezvous_file/src"])}


@final
class Nodes:
    """Agents of one job; each worker writes its ranks and the generation's size into one file, and waits for another.

    ``prefix`` is a command to run an agent with, such as ``ip netns exec``.
    """

    def __init__(self, folder: Path, backend: str, endpoint: str, nodes: str, **conf: object) -> None:
        folder.mkdir(exist_ok=True)
        self.environment: dict[str, str] = {}
        self.folder, self.lines, self.gate = folder, folder / "lines", folder / "gate"
        self.lines.touch()
        self.worker = folder / "worker.sh"
        self.worker.write_text(
            f'echo "$RANK $WORLD_SIZE $GROUP_RANK" >> {self.lines}\nwhile [ ! -e {self.gate} ]; do sleep 0.05; done\n'
        )
        self.backend, self.endpoint, self.nodes = backend, endpoint, nodes
        # Where data that is left behind is seen.
        self.conf = {**conf, **({"data_dir": folder} if backend == "etcd-hosted" else {})}
        self.token = f"quorate-test-{os.urandom(4).hex()}"
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, rank: int, prefix: tuple[str, ...] = (), **conf: object) -> subprocess.Popen[bytes]:
        settings = ",".join(f"{name}={value}" for name, value in {**self.conf, **conf}.items())
        command = [*prefix, sys.executable, "-m", "quorate", "run", "--no-python", f"--nnodes={self.nodes}"]
        # A node of an elastic job has no rank of its own: the round may be too small for it.
        command += [] if ":" in self.nodes else [f"--node-rank={rank}"]
        command += [f"--rdzv-backend={self.backend}", f"--rdzv-endpoint={self.endpoint}"]
        command += ["--rdzv-id=lost", "--rdzv-auth=off", f"--rdzv-conf={settings}", "/bin/sh", str(self.worker)]
        with open(self.folder / f"agent{len(self.agents)}", "wb") as errors:
            agent = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "QUORATE_TEST_TOKEN": self.token, "TMPDIR": str(self.folder), **self.environment},
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        self.agents.append(agent)
        return agent

    def count_worlds(self, size: int) -> int:
        """Return how many worlds of ``size`` workers have started."""
        found = [line.split() for line in self.lines.read_text().splitlines()]
        return sum(line[1:2] == [str(size)] for line in found) // size

    def has_world(self, size: int, times: int = 1) -> bool:
        """Return whether a world of ``size`` workers has started ``times`` times."""
        return self.count_worlds(size) >= times

    def wait_for_world(self, size: int, times: int = 1) -> None:
        assert settles(lambda: self.has_world(size, times)), self.story()

    def finish(self, agents: list[subprocess.Popen[bytes]]) -> None:
        """Let the workers end; the agents must then succeed."""
        self.gate.touch()
        assert settles(lambda: all(agent.poll() is not None for agent in agents)), self.story()
        codes = [agent.wait(DEADLINE) for agent in agents]
        assert set(codes) == {0}, f"{codes}\n{self.story()}"

    def said(self, index: int) -> str:
        return (self.folder / f"agent{index}").read_text()

    def story(self) -> str:
        return "\n".join(f"agent {index}: {self.said(index)}" for index in range(len(self.agents)))

    def processes(self) -> list[int]:
        marker = f"QUORATE_TEST_TOKEN={self.token}".encode()
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and marker in environment_of(int(name))]

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGCONT)
                agent.kill()
            agent.wait()
        wait_for_end(self.processes(), 15.0)
