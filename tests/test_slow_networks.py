"""A slow network loses no healthy node: starts of whole jobs over a link with 200 ms round trip and 5 % of loss.

Option of the environment ``QUORATE_TEST_TRIALS``: how many jobs start on each backend, one after the other.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .machines import DEADLINE, Machine, two_machines
from .slow_link import SlowLink

TRIALS = int(os.environ.get("QUORATE_TEST_TRIALS", "1"))
BACKENDS = ("static", "tcp", "c10d", "etcd", "etcd-v2") if TRIALS > 1 else ("tcp", "etcd")
DELAY_SECONDS, LOSS = 0.1, 0.05
#: The shortest time after which a lost node would be told: a lease and a quarter.
RUN_SECONDS = 4
HOSTS = "::ffff:127.0.0.1 mapped\n::ffff:10.77.0.1 one-mapped\n::ffff:10.77.0.2 two-mapped"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    seed = random.randrange(1 << 32) if TRIALS > 1 else 0
    print(f"seed {seed}")
    with two_machines(tmp_path) as made:
        try:
            link = SlowLink({m.address: (m.process.pid, m.interface) for m in made}, DELAY_SECONDS, LOSS, seed)
        except OSError as error:
            pytest.skip(f"a slow link cannot be made here: {error}")
        try:
            for machine in made:
                machine.begin()
                machine.do(f"echo '{HOSTS}' >> /etc/hosts")
            yield made
            assert link.lost or TRIALS == 1
        finally:
            link.close()


@contextmanager
def store_of(backend: str, machine: Machine, folder: Path) -> Iterator[str]:
    """Run what serves the store of ``backend`` on ``machine``; gives the endpoint."""
    if not backend.startswith("etcd"):
        yield "one:29400"
        return
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed")
    url = f"http://{machine.address}:2379"
    command = ["etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
    command += ["--listen-peer-urls=http://127.0.0.1:2380", "--enable-v2=true", "--log-level=error"]
    server = subprocess.Popen([*machine.inside(), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"{machine.address}:2379"
    finally:
        server.terminate()
        server.wait(DEADLINE)


@pytest.mark.slow  # each message takes a tenth of a second, or is sent again
@pytest.mark.timeout(180 + 60 * TRIALS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_is_lost_where_messages_are_late_and_some_are_lost(
    backend: str, machines: list[Machine], tmp_path: Path
) -> None:
    with store_of(backend, machines[0], tmp_path) as endpoint:
        for trial in range(TRIALS):
            flags = ("--no-python", "--nnodes=2", f"--rdzv-backend={backend}", f"--rdzv-endpoint={endpoint}")
            program = ("sh", "-c", f'echo "begins as $RANK after $TORCHELASTIC_RESTART_COUNT"; sleep {RUN_SECONDS}')
            agents = [
                machine.run(*flags, f"--node-rank={rank}", f"--rdzv-id=job{trial}", "--rdzv-auth=off", *program)
                for rank, machine in enumerate(machines)
            ]
            try:
                outputs = [agent.communicate(timeout=2 * DEADLINE)[0] for agent in agents]
            finally:
                for agent in agents:
                    agent.kill()
            assert [agent.returncode for agent in agents] == [0, 0], outputs
            for rank, output in enumerate(outputs):
                assert output.count("begins as") == output.count(f"begins as {rank} after 0") == 1, outputs
                assert "lost" not in output, outputs
