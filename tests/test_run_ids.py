"""One name, one job: a run id can be used again at once, and two jobs of one name never merge.

What does not live here: the choice between two jobs, in all its orders (``core/tests/test_incarnations.py``), and the
laws that every backend has to keep (``quorate.testing``).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from quorate import PluginHost
from quorate.catalogue import PluginKind
from quorate.clock import monotonic, sleep
from quorate.plugins import get_host
from quorate.rendezvous import RendezvousBackend
from quorate.testing import ServerProcess, Subject, check, free_port

from .backends import BACKENDS, loopback_port
from .nodes import file_store_environment

pytestmark = pytest.mark.usefixtures("capfd")

REPOSITORY = Path(__file__).parents[1]
DEADLINE = 60.0
PERSISTENT = ("etcd", "etcd-v2", "file", "redis")


def _example(name: str) -> RendezvousBackend:
    sys.path.insert(0, str(REPOSITORY / f"docs/examples/rendezvous_{name}/src"))
    try:
        module = __import__(f"quorate_rendezvous_{name}")  # an example, which is not installed here
    finally:
        sys.path.pop(0)
    (backend,) = module.plugin.quorate_register_rendezvous()
    assert isinstance(backend, RendezvousBackend)
    return backend


@pytest.fixture(scope="module")
def servers() -> Iterator[None]:
    with BACKENDS["etcd"].serve(), BACKENDS["etcd-v2"].serve():
        yield


@pytest.fixture(params=PERSISTENT)
def subject(request: pytest.FixtureRequest, servers: None, tmp_path: Path) -> Iterator[Subject]:
    """Each store that keeps its data, as the conformance kit sees it."""
    if request.param == "file":
        yield Subject(_example("file"), str(tmp_path), lenient=True, host=PluginHost(paths=[]))
        return
    if request.param == "redis":
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed")
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
        with ServerProcess(command, port) as server:
            yield Subject(_example("redis"), server.endpoint, lenient=True, host=PluginHost(paths=[]))
        return
    backend = get_host().choose(PluginKind.RENDEZVOUS, request.param)
    with BACKENDS[request.param].fresh_endpoint() as endpoint:
        yield Subject(backend, endpoint, lenient=True, host=get_host())


def test_twenty_jobs_in_a_row_have_one_run_id(subject: Subject) -> None:
    for _ in range(5):  # the law runs four jobs in a row
        (outcome,) = check(subject, ["run_id_can_be_used_again"])
        assert not outcome.text, outcome.text


# --- whole jobs -------------------------------------------------------------------------------------------------------

RunAgent = Callable[..., "Agent"]


class Agent:
    """A ``quorate run`` in a process of its own, which writes to a file."""

    def __init__(self, log: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quorate", "run", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, pattern: str) -> str:
        deadline = monotonic() + DEADLINE
        while (found := re.search(pattern, self.output)) is None:
            assert monotonic() < deadline, f"{pattern!r} is not in:\n{self.output}"
            assert self.process.poll() is None or re.search(pattern, self.output), self.output
            sleep(0.02)  # it writes into a file, as it may have to go on when nobody reads
        return found[0]

    def ends(self) -> int:
        return self.process.wait(DEADLINE)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunAgent]:
    started: list[Agent] = []

    def start(*arguments: str, env: Mapping[str, str] | None = None) -> Agent:
        started.append(Agent(tmp_path / f"agent{len(started)}.log", *arguments, env=env))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
        each.process.wait(DEADLINE)


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, str]:
    """Programs of two people: they say their name, and wait for a file."""
    found = {}
    for name in ("alice", "bob"):
        path = tmp_path / f"{name}.sh"
        path.write_text(
            f'#!/bin/sh\necho "{name} is rank $RANK of $WORLD_SIZE"\nwhile [ ! -e "$1" ]; do sleep 0.05; done\n'
        )
        path.chmod(0o755)
        found[name] = str(path)
    return found


@pytest.mark.parametrize("backend", ["tcp", "c10d"])
def test_a_second_job_on_a_shared_endpoint_does_not_become_a_node_of_the_first(
    backend: str, agent: RunAgent, scripts: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with loopback_port() as endpoint:
        flags = ("--no-python", "--nnodes=2", f"--rdzv-backend={backend}", f"--rdzv-endpoint={endpoint}")
        alice = agent(*flags, "--rdzv-conf=is_host=true", scripts["alice"], str(go))
        alice.says("waiting for nodes")
        bob = agent(*flags, scripts["bob"], str(go))
        assert bob.ends() != 0
        assert "the command is bob.sh" in bob.output
        assert "give each its own --rdzv-id" in bob.output
        alice.says("does not join round 0: .*the command is bob.sh on .* and alice.sh on ")
        second = agent(*flags, scripts["alice"], str(go))
        for each in (alice, second):
            each.says("alice is rank [01] of 2")
        bob = agent(*flags, scripts["bob"], str(go))
        assert bob.ends() != 0
        for each in (alice, second):
            each.says("a node .*wanted to join and was refused: .* is another one: the command is bob.sh on ")
        go.touch()
        assert (alice.ends(), second.ends()) == (0, 0)


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2"])
def test_a_job_that_runs_in_etcd_is_told_of_a_node_that_was_refused(
    backend: str, servers: None, agent: RunAgent, scripts: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with BACKENDS[backend].fresh_endpoint() as endpoint:
        where = (f"--rdzv-backend={backend}", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={tmp_path.name}")
        command = ("--no-python", scripts["alice"], str(go))
        job = [agent("--nnodes=2", *where, *command) for _ in range(2)]
        for each in job:
            each.says("alice is rank [01] of 2")
        other = agent("--nnodes=1:2", *where, *command)
        assert other.ends() != 0
        assert "--nnodes is 1:2 on" in other.output
        for each in job:
            each.says("wanted to join and was refused: .*--nnodes is 1:2 on .* and 2 on ")
        go.touch()
        assert [each.ends() for each in job] == [0, 0]


def test_a_second_static_job_on_the_default_port_says_that_its_rank_is_taken(
    agent: RunAgent, scripts: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with loopback_port() as endpoint:
        port = endpoint.rpartition(":")[2]
        flags = ("--no-python", "--nnodes=2", f"--rdzv-endpoint=127.0.0.1:{port}")
        job = [agent(*flags, f"--node-rank={rank}", scripts["alice"], str(go)) for rank in range(2)]
        for each in job:
            each.says("alice is rank [01] of 2")
        again = agent(*flags, "--node-rank=0", scripts["alice"], str(go))
        assert again.ends() != 0
        assert "node rank 0 of the job" in again.output
        assert "is taken" in again.output
        for each in job:
            each.says("wanted to join and was refused: node rank 0 of the job .* is taken")
        go.touch()
        assert [each.ends() for each in job] == [0, 0]


def test_another_number_of_nodes_is_refused_and_a_standby_says_that_it_never_ran(
    agent: RunAgent, scripts: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with loopback_port() as endpoint:
        flags = ("--no-python", "--rdzv-backend=tcp", f"--rdzv-endpoint={endpoint}")
        command = (scripts["alice"], str(go))
        job = [agent("--nnodes=2", *flags, *command) for _ in range(2)]
        for each in job:
            each.says("alice is rank [01] of 2")
        other = agent("--nnodes=1:2", *flags, *command)
        assert other.ends() != 0
        assert "--nnodes is 1:2 on" in other.output
        for each in job:
            each.says("wanted to join and was refused: .*--nnodes is 1:2 on .* and 2 on ")
        standby = agent("--nnodes=2", *flags, *command)
        standby.says("standing by for the next one.*If that is an older job that should end, stop its agents")
        go.touch()
        assert [each.ends() for each in [*job, standby]] == [0, 0, 0]
        assert "this node ran no workers" in standby.output


def test_a_run_id_of_a_shared_folder_runs_again_at_once_after_success_and_after_failure(
    agent: RunAgent, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    env = file_store_environment(tmp_path)
    flags = ("--no-python", "--nnodes=2", "--rdzv-backend=file", f"--rdzv-endpoint={tmp_path / 'store'}")
    for number, code in enumerate((0, 3, 0)):
        (met := tmp_path / f"met-{number}").mkdir()
        # Both have run before the first one fails.
        script = f"echo ran; : >{met}/$RANK; until [ -e {met}/0 ] && [ -e {met}/1 ]; do sleep 0.02; done; exit {code}"
        command = ("--rdzv-id=job", "--max-restarts=0", "sh", "-c", script)
        job = [agent(*flags, *command, env=env) for _ in range(2)]
        for each in job:
            assert (each.ends() == 0) is (code == 0), each.output
            assert "ran\n" in each.output, each.output
