"""Workers that return from their function and leave torch as it is: what they have returned counts.

What does not live here: the ways of a single worker to end (``plugins/process_local/tests/test_results.py``).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import workers
from tests.harness import Ear, Gate, Job, Plan, as_store_client, as_store_host
from tests.test_hung_workers import run_command

METHODS = ["spawn", "fork", "forkserver", "warm"]
#: Of those in which Python comes to its end: a forked worker ends without.
RACES = 2

one_backend = pytest.mark.parametrize("backend", ["tcp"], indirect=True)
#: The workers' store is the agent's, or one that rank 0 serves, which must outlive the others' last words.
shared_store_or_not = pytest.mark.parametrize("backend", ["c10d", "tcp"], indirect=True)


def plan_with(job: Job, method: str, function: Callable[..., Any], *arguments: Any, workers: int) -> Plan:
    settings = {"preload": ("torch",)} if method == "warm" else {}
    agent = {"start_method": method}
    return job.plan(function, *arguments, workers=workers, agent=agent, spec={"settings": settings})


@pytest.mark.slow(reason="many workers import torch: three of seven launches of four workers lost the race")
@shared_store_or_not
@pytest.mark.parametrize("method", METHODS)
def test_process_groups_may_be_left(job: Job, method: str) -> None:
    plan = plan_with(job, method, workers.leave_a_process_group, workers=4)
    for launch in range(RACES if method in ("spawn", "warm") else 1):
        (outcome,) = job.run(replace(plan, run_id=f"{plan.run_id}-{launch}"))
        assert outcome.values == {rank: rank for rank in range(4)}


@pytest.mark.slow(reason="the template imports torch, several times")
@one_backend
def test_process_groups_may_be_left_by_an_exit(job: Job) -> None:
    plan = plan_with(job, "warm", workers.leave_a_process_group_by_exit, workers=4)
    for launch in range(RACES):
        (outcome,) = job.run(replace(plan, run_id=f"{plan.run_id}-{launch}"))
        assert outcome.values == dict.fromkeys(range(4))


@pytest.mark.slow(reason="the workers import torch and torch.nn.parallel")
@shared_store_or_not
@pytest.mark.parametrize("method", ["spawn", "warm"])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(workers.leave_a_model, ()), (workers.leave_rpc, (True,)), (workers.leave_rpc, (False,))],
    ids=["ddp", "rpc", "rpc without shutdown"],
)
def test_models_and_rpc_may_be_left(
    job: Job, method: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    plan = plan_with(job, method, function, *arguments, workers=2)
    (outcome,) = job.run(plan, TORCHINDUCTOR_CACHE_DIR=str(job.folder / "inductor"))
    assert outcome.values == {0: 2.0, 1: 2.0}


@pytest.mark.slow(reason="two templates import torch")
def test_process_groups_may_be_left_on_several_nodes(job: Job) -> None:
    plan = replace(plan_with(job, "warm", workers.leave_a_process_group, workers=2), nodes=(2, 2))
    outcomes = job.run(plan, plan)
    assert [outcome.values for outcome in outcomes] in ([{0: 0, 1: 1}, {2: 2, 3: 3}], [{2: 2, 3: 3}, {0: 0, 1: 1}])


@one_backend
@pytest.mark.parametrize("method", METHODS)
def test_rank_zero_serves_the_other_nodes_after_its_return(job: Job, ear: Ear, gate: Gate, method: str) -> None:
    """A store that it serves, or RPC, must outlive the last words of all others: it ends with the exit barrier."""
    address = "\0quorate-test-" + job.token
    plan = job.plan(workers.serve_or_ask, ear.path, gate.path, address, nodes=(2, 2), agent={"start_method": method})
    hosts = [job.start(as_store_host(plan)), job.start(as_store_client(plan))]
    (message,) = ear.hear(1, event="returns")
    descriptor = os.pidfd_open(message["pid"])
    try:
        ended, _, _ = select.select([descriptor], [], [], 1.0)
    finally:
        os.close(descriptor)
    assert not ended
    gate.open()
    outcomes = [host.outcomes()[0] for host in hosts]
    assert {rank: value for outcome in outcomes for rank, value in outcome.values.items()} == {0: "served", 1: "here"}


@one_backend
@pytest.mark.parametrize("method", METHODS)
def test_who_has_returned_is_no_part_of_anothers_failure(job: Job, ear: Ear, gate: Gate, method: str) -> None:
    plan = job.plan(workers.return_or_raise_once, ear.path, gate.path, workers=3, agent={"start_method": method})
    host = job.start(plan)
    ear.hear(3, event="started")
    gate.open()
    result = host.outcome().failed
    assert set(result.failures) == {1}
    assert "failed after the root cause" not in host.console()


@one_backend
@pytest.mark.parametrize("method", METHODS)
def test_what_was_returned_before_a_restart_is_forgotten(job: Job, ear: Ear, gate: Gate, method: str) -> None:
    more = {"workers": 3, "max_restarts": 1, "agent": {"start_method": method}}
    host = job.start(job.plan(workers.return_or_raise_once, ear.path, gate.path, **more))
    ear.hear(3, event="started")
    gate.open()
    assert host.outcome().values == {0: 1, 1: 1, 2: 1}


@one_backend
def test_who_has_returned_does_not_hang(job: Job, ear: Ear) -> None:
    """The watchdog sees a process that neither computes nor writes, while the other one works."""
    settings = {"hang_after": 0.5, "heartbeat_timeout": 0.0}
    plan = job.plan(workers.work, ear.path, 2.5, 0, workers=2, spec={"settings": settings})
    (outcome,) = job.run(plan)
    assert outcome.values == {0: 0, 1: 1}


#: A library that aborts when Python takes the program's module apart, as torch does with a process group that is left.
_LEAVES_TORCH = """
import ctypes, torch
new = ctypes.pythonapi.PyCapsule_New
new.restype = ctypes.py_object
left = new(ctypes.c_void_p(1), None, ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p))
print("done", flush=True)
"""


@pytest.mark.slow(reason="the worker imports torch")
@pytest.mark.parametrize("flags", [(), ("--start-method=warm",)], ids=["exec", "warm"])
def test_a_script_that_aborts_at_its_end_is_told_the_remedy(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Nobody can know whether a script has done all that it was to do: it fails, and the report says what to do."""
    code, said = run_command(tmp_path, _LEAVES_TORCH, *flags)
    assert code == 1
    assert "failed: the script had finished; a library aborted while Python ended (SIGABRT): " in said, said
    assert "call destroy_process_group() at the end of the script" in said
    assert "killed by SIGABRT" in said
