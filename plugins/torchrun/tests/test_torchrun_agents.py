"""Agents by torch's interface: specifications, and agents whose methods are their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import DefaultLogsSpecs, ProcessFailure, RunResult, WorkerGroup, WorkerState
from quorate_torchrun.elastic.agent.server import (
    DEFAULT_ROLE,
    ElasticAgent,
    LocalElasticAgent,
    SimpleElasticAgent,
    WorkerSpec,
)
from quorate_torchrun.elastic.multiprocessing import (
    Std,
)
from quorate_torchrun.elastic.rendezvous import (
    RendezvousParameters,
)


def rank_and_restarts() -> tuple[str, str]:
    return os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]


# --- the agent ------------------------------------------------------------------------------------------------------

Specify = Callable[..., WorkerSpec]


@pytest.fixture
def specify() -> Iterator[Specify]:
    """Makes specifications of two workers whose handlers are shut down at the end."""
    handlers: list[Any] = []

    def make(entrypoint: Any = rank_and_restarts, **keywords: Any) -> WorkerSpec:
        handlers.append(quorate.get_rendezvous_handler(RendezvousParameters("standalone", "", "job", 1, 1)))
        return WorkerSpec(DEFAULT_ROLE, 2, handlers[-1], entrypoint=entrypoint, **keywords)

    yield make
    for each in handlers:
        each.shutdown()


def test_an_agent_with_torchs_arguments(tmp_path: Path, specify: Specify) -> None:
    agent = LocalElasticAgent(
        specify(max_restarts=1, master_addr="127.0.0.1"),
        logs_specs=DefaultLogsSpecs(str(tmp_path)),
        start_method="fork",
        exit_barrier_timeout=5,
        shutdown_timeout=3,
        uninterruptible_state_timeout=1.0,
    )
    result = agent.run()
    assert (result.state, result.return_values) == (WorkerState.SUCCEEDED, {0: ("0", "0"), 1: ("1", "0")})
    group = agent.get_worker_group(DEFAULT_ROLE)
    assert [worker.global_rank for worker in group.workers] == [0, 1]
    assert isinstance(agent, ElasticAgent)
    assert issubclass(quorate.LocalElasticAgent, ElasticAgent)


def test_streams_may_be_named_in_the_specification(specify: Specify, capfd: pytest.CaptureFixture[str]) -> None:
    spec = specify("echo", args=("word",), redirects=Std.OUT, duplicate_stdout_filters=["word"])
    assert LocalElasticAgent(spec).run().state is WorkerState.SUCCEEDED
    assert capfd.readouterr().out == ""


def test_the_former_name_of_an_entrypoint_and_what_a_specification_cannot_be(specify: Specify) -> None:
    with pytest.warns(DeprecationWarning, match="entrypoint"):
        assert specify(None, fn=rank_and_restarts).get_entrypoint_name() == "rank_and_restarts"
    assert specify("/bin/echo").get_entrypoint_name() == "echo"
    for wrong in ({"entrypoint": None}, {"monitor_interval": 0}):
        with pytest.raises(quorate.UsageError):
            specify(**wrong)


class OwnAgent(SimpleElasticAgent):
    """Starts its workers by itself; rank 1 of the first round fails."""

    processes: dict[int, subprocess.Popen[bytes]]
    ended: list[str]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        code = "import os; os._exit(os.environ['RANK'] + os.environ['TORCHELASTIC_RESTART_COUNT'] == '10')"
        self.processes = {
            launch.local_rank: subprocess.Popen([sys.executable, "-S", "-c", code], env=dict(launch.environment))
            for launch in self.launches
        }
        return {rank: process.pid for rank, process in self.processes.items()}

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {worker.global_rank: self.processes[worker.local_rank].poll() for worker in worker_group.workers}
        failed = {
            rank: ProcessFailure(rank, worker_group.workers[rank].id or 0, code, "")
            for rank, code in codes.items()
            if code
        }
        if failed:
            return RunResult(WorkerState.FAILED, failures=failed)
        if None in codes.values():
            return RunResult(WorkerState.HEALTHY)
        return RunResult(WorkerState.SUCCEEDED, {rank: rank * 10 for rank in codes})

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        self.ended = [*getattr(self, "ended", []), "shut down"]


def test_an_agent_may_run_workers_by_its_own_methods(specify: Specify) -> None:
    agent = OwnAgent(specify("not started", monitor_interval=0.02))
    result = agent.run()
    assert (result.state, result.return_values) == (WorkerState.SUCCEEDED, {0: 0, 1: 10})
    group = agent.get_worker_group()
    assert (group.restart_count, group.state) == (1, WorkerState.SUCCEEDED)
    assert agent.ended == ["shut down"]
    no_restarts = OwnAgent(specify("not started", max_restarts=0, monitor_interval=0.02)).run()
    assert (no_restarts.state, list(no_restarts.failures)) == (WorkerState.FAILED, [1])


def test_workers_that_were_started_without_telling_who_they_are_are_stopped(specify: Specify) -> None:
    class Forgetful(OwnAgent):
        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            super()._start_workers(worker_group)
            return {0: 1}

        def _stop_workers(self, worker_group: WorkerGroup) -> None:
            super()._stop_workers(worker_group)
            self.ended = ["stopped"]

    agent = Forgetful(specify("not started", max_restarts=0))
    assert agent.run().state is WorkerState.FAILED
    assert agent.ended == ["stopped", "shut down"]
