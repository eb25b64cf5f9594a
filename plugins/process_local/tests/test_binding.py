"""Workers run on the CPUs of their launch, however they are started, and the agent does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from attrs import evolve

from quorate.errors import StartError
from quorate.records import WorkerExited, WorkerLaunch
from quorate.starter import PreparingStarter

from .conftest import Group, launch, starter

CPUS = sorted(os.sched_getaffinity(0))
FORBIDDEN = 65_000
PRINT = "import os; print(','.join(map(str, sorted(os.sched_getaffinity(0)))))"

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="two CPUs are needed to tell one from all")


def run(method: str, launches: Sequence[WorkerLaunch]) -> list[WorkerExited]:
    """Start the workers, wait for their ends in any order, and leave nothing of the starter."""
    started_by = starter(method)
    try:
        group = Group(started_by.start(launches))
        try:
            return group.run()
        finally:
            group.close()
    finally:
        if isinstance(started_by, PreparingStarter):
            started_by.close()


def bound(single: WorkerLaunch, *cpus: int) -> WorkerLaunch:
    return evolve(single, cpus=frozenset(cpus))


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver", "warm"])
def test_functions_are_bound_and_those_beside_them_are_not(method: str, functions: ModuleType) -> None:
    launches = [launch(rank, functions.affinity) for rank in range(4)]
    exits = run(method, [bound(launches[0], CPUS[0]), launches[1], bound(launches[2], *CPUS[1:]), launches[3]])
    results = {exited.local_rank: exited.return_value for exited in exits}
    assert results == {0: CPUS[:1], 1: CPUS, 2: CPUS[1:], 3: CPUS}
    assert sorted(os.sched_getaffinity(0)) == CPUS


@pytest.mark.parametrize("method", ["exec", "warm"])
def test_commands_are_bound_and_those_beside_them_are_not(method: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{rank}" for rank in range(3)]
    launches = [launch(rank, sys.executable, "-c", PRINT, stdout=str(path)) for rank, path in enumerate(paths)]
    run(method, [launches[0], bound(launches[1], CPUS[-1]), launches[2]])
    assert [path.read_text().strip() for path in paths] == [
        ",".join(map(str, cpus)) for cpus in (CPUS, CPUS[-1:], CPUS)
    ]
    assert sorted(os.sched_getaffinity(0)) == CPUS


@pytest.mark.parametrize("method", ["exec", "spawn", "fork"])
def test_a_worker_whose_cpus_may_not_be_used_is_refused(method: str, functions: ModuleType) -> None:
    single = launch(0, "true") if method == "exec" else launch(0, functions.affinity)
    words = f"worker of local rank 0 cannot be started: the CPUs {FORBIDDEN} cannot be used by this process"
    with pytest.raises(StartError, match=words):
        run(method, [bound(single, FORBIDDEN)])
    assert sorted(os.sched_getaffinity(0)) == CPUS


@pytest.mark.parametrize("method", ["forkserver", "warm"])
def test_a_copy_whose_cpus_may_not_be_used_fails(method: str, functions: ModuleType) -> None:
    (exited,) = run(method, [bound(launch(0, functions.affinity), FORBIDDEN)])
    assert exited.exit_code != 0
    assert exited.return_value is None
