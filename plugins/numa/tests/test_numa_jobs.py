"""Whole jobs on this machine's own CPUs: what workers are bound to, however they are started, and what is said of it.

The topology is made up of the CPUs that this process may use: at least two are needed for two nodes.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve

from quorate import LaunchConfig, PluginHost, hookimpl, launch
from quorate.affinity import format_cpus
from quorate.memory_policy import can_prefer_node, get_policy, preferring_call, set_policy
from quorate.records import Assignment, Event, WorkerLaunch
from quorate_numa import NumaPlugin

from .machines import DGX_A100, Machine

pytestmark = [
    pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two CPUs are needed to be bound to different ones"),
]

CPUS = sorted(os.sched_getaffinity(0))
#: Two nodes: the first usable CPU, and all others.
FIRST, OTHERS = CPUS[:1], CPUS[1:]
QUORATE = str(Path(sys.executable).with_name("quorate"))
DEADLINE_SECONDS = 60.0
MPOL_BIND = 2


def two_nodes(**more: Any) -> Machine:
    machine = Machine([[cpu] for cpu in CPUS], [CPUS], {0: FIRST, 1: OTHERS}, memory=[0])
    return replace(machine, others=(), **more)


class Listener:
    """Keeps the events of a job."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @hookimpl
    def quorate_observe_event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of functions; the workers find it on the path that they inherit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    import numa_workers

    yield numa_workers
    assert sorted(os.sched_getaffinity(0)) == CPUS, "the agent itself is not bound"
    assert get_policy() in (0, None)


Run = Callable[..., dict[int, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run(function or command, *args, machine=…, mode=…, extra=…, **config)`` runs a job of two workers."""

    def run_job(entrypoint: Any, *args: Any, **more: Any) -> dict[int, Any]:
        machine: Machine = more.pop("machine", two_nodes())
        root = tmp_path / "machine"
        if not root.exists():
            machine.write(root)
        extra = [("numa-here", NumaPlugin(str(root))), *more.pop("extra", [])]
        host = PluginHost(disabled=["numa"], extra=extra)
        settings = {"numa_binding": more.pop("mode", "node")}
        config = LaunchConfig(1, 1, 2, rdzv_backend="standalone", settings=settings, **more)
        return launch(config, entrypoint, host=host)(*args)

    return run_job


# --- every way to start a worker --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver", "warm"])
def test_functions_run_on_their_cpus_and_so_does_all_that_they_start(
    method: str, run: Run, workers: ModuleType
) -> None:
    results = run(workers.bindings, start_method=method)
    for rank, cpus in enumerate([FIRST, OTHERS]):
        assert results[rank]["own"] == results[rank]["thread"] == results[rank]["child"] == cpus
    # Only node 0 has memory.
    assert results[1]["policy"] == get_policy()
    if can_prefer_node():
        assert (results[0]["policy"], results[0]["maps"]) == (1, "prefer:0")


@pytest.mark.parametrize("method", ["spawn", "warm"])
def test_commands_run_on_their_cpus(method: str, run: Run, workers: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    code = """
        import json, os, sys, numa_workers
        with open(sys.argv[1] + os.environ["RANK"], "w") as file:
            file.write(json.dumps(numa_workers.bindings()))
    """
    script.write_text(dedent(code))
    run(sys.executable, str(script), f"{tmp_path}/result-", start_method=method)
    results = [json.loads((tmp_path / f"result-{rank}").read_text()) for rank in range(2)]
    for result, cpus in zip(results, [FIRST, OTHERS], strict=True):
        assert result["own"] == result["thread"] == result["child"] == cpus
    if can_prefer_node():
        assert [result["policy"] for result in results] == [1, 0]


def test_a_restarted_worker_is_bound_again(run: Run, workers: ModuleType, tmp_path: Path) -> None:
    assert run(workers.fail_once, str(tmp_path), max_restarts=1, start_method="fork") == {0: FIRST, 1: OTHERS}
    assert (tmp_path / "0-0").read_text() == str(FIRST[0]), "it was bound before it failed, too"


def test_a_memory_policy_of_the_users_own_stays(run: Run, workers: ModuleType) -> None:
    """As under ``numactl --membind=0``: workers inherit it, and prefer nothing."""
    call = preferring_call(0)
    if call is None or not can_prefer_node():
        pytest.skip("this system lets no process have a memory policy")
    number, _, words = call
    mask = (ctypes.c_uint64 * len(words))(*words)
    assert ctypes.CDLL(None).syscall(number, MPOL_BIND, mask, 64 * len(words) + 1) == 0
    try:
        for method in ("fork", "spawn", "warm"):
            results = run(workers.bindings, start_method=method)
            assert [results[rank]["policy"] for rank in range(2)] == [MPOL_BIND] * 2
            assert get_policy() == MPOL_BIND
    finally:
        set_policy(0)


# --- whose device is where --------------------------------------------------------------------------------------------


def with_gpus() -> Machine:
    """GPU 0 at node 1, GPU 1 at node 0."""
    return two_nodes(nvidia=[replace(gpu, node=1 - number) for number, gpu in enumerate(DGX_A100.nvidia[:2])])


def test_a_worker_is_bound_near_the_device_of_its_local_rank(
    run: Run, workers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(workers.visible, machine=with_gpus(), start_method="fork") == {0: ("", OTHERS), 1: ("", FIRST)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert run(workers.visible, start_method="fork") == {0: ("1,0", FIRST), 1: ("1,0", OTHERS)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert run(workers.visible, start_method="fork") == {0: ("1", FIRST), 1: ("1", FIRST)}


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1"]), ("1,0", ["1", "0"])])
def test_a_worker_that_sees_one_device_alone_is_bound_near_that(
    visible: str | None, expected: list[str], run: Run, workers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    results = run(workers.visible, machine=with_gpus(), start_method="fork", virtual_local_rank=True, mode="exclusive")
    assert results == {rank: (gpu, FIRST if gpu == "1" else OTHERS) for rank, gpu in enumerate(expected)}


# --- what is said -----------------------------------------------------------------------------------------------------


def test_one_line_and_the_event_say_what_was_chosen(
    run: Run, workers: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = Listener()
    run(workers.fail_once, str(tmp_path), max_restarts=1, start_method="fork", extra=[("listener", listener)])
    lines = [line for line in capfd.readouterr().err.splitlines() if "NUMA" in line]
    first, others = format_cpus(FIRST), format_cpus(OTHERS)
    assert len(lines) == 1, "the second round is bound alike"
    assert lines[0].startswith(
        f"quorate: NUMA binding node: local rank 0 on node 0 (CPUs {first}), local rank 1 on node 1 (CPUs {others})"
    )
    started = [event.details["cpus"] for event in listener.events if event.name == "workers.started"]
    assert started == [(first, others)] * 2


def test_a_machine_without_numa_is_no_error(run: Run, workers: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    results = run(workers.bindings, machine=two_nodes(numa=False), start_method="fork", mode="core-complex")
    assert [results[rank]["own"] for rank in range(2)] == [CPUS, CPUS]
    err = capfd.readouterr().err
    assert "the kernel tells of no NUMA nodes, so all CPUs count as node 0" in err
    assert "it tells of no L3 caches, so a core complex is a node" in err


def test_what_cannot_be_is_said(run: Run, workers: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    gpus = [replace(gpu, node=7, model=f"0x20b{number}") for number, gpu in enumerate(DGX_A100.nvidia[:2])]
    run(workers.visible, machine=two_nodes(nvidia=gpus), start_method="fork")
    err = capfd.readouterr().err
    assert "on node 0, the nearest to the device's node 7 (CPUs" in err
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in err


def test_a_mode_that_does_not_exist_binds_nobody(
    run: Run, workers: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(workers.visible, start_method="fork", mode="socks") == {0: ("", CPUS), 1: ("", CPUS)}
    assert "--numa-binding=socks is not a way to bind workers; known are node, socket, " in capfd.readouterr().err


# --- beside other plugins ---------------------------------------------------------------------------------------------


class Other:
    """Changes launches too: adds a variable, and binds local rank 0 itself."""

    @hookimpl
    def quorate_decide_launch(self, launch: WorkerLaunch, assignment: Assignment) -> WorkerLaunch:
        changed = evolve(launch, environment={**launch.environment, "CUDA_VISIBLE_DEVICES": "other"})
        return evolve(changed, cpus=frozenset(OTHERS)) if launch.local_rank == 0 else changed


def test_what_another_plugin_decides_stays(run: Run, workers: ModuleType) -> None:
    assert run(workers.visible, start_method="fork", extra=[("other", Other())]) == {
        0: ("other", OTHERS),
        1: ("other", OTHERS),
    }


def test_a_job_that_does_not_ask_for_it_is_not_bound(run: Run, workers: ModuleType) -> None:
    assert run(workers.visible, start_method="fork", mode=None) == {0: ("", CPUS), 1: ("", CPUS)}


# --- the command line, on this machine as it is -----------------------------------------------------------------------


def quorate(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "QUORATE_"))}
    command = [QUORATE, *argv]
    env = {**kept, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_SECONDS)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text("import os\nprint(f'{sorted(os.sched_getaffinity(0))}\\n', end='')\n")
    return str(path)


def test_the_flag_and_its_variable_bind(script: str) -> None:
    for argv, environment in ((["--numa-binding=exclusive"], {}), ([], {"PET_NUMA_BINDING": "exclusive"})):
        done = quorate("run", "--standalone", "--nproc-per-node=2", *argv, script, **environment)
        assert done.returncode == 0, done.stderr
        first, second = (set(json.loads(line)) for line in done.stdout.splitlines())
        assert first
        assert second
        assert not first & second
        assert "quorate: NUMA binding exclusive: " in done.stderr


def test_a_wrong_mode_is_one_sentence_with_the_right_ones(script: str) -> None:
    done = quorate("run", "--numa-binding=numa", script)
    assert done.returncode == 2
    assert done.stderr == (
        "quorate: error: --numa-binding=numa is not a way to bind workers; "
        "known are node, socket, exclusive, core-complex\n"
    )


def test_the_help_says_what_there_is() -> None:
    assert "node, socket, exclusive, core-complex" in " ".join(quorate("run", "--help").stdout.split())


def test_without_the_plugin_the_flag_names_it(script: str) -> None:
    done = quorate("run", "--numa-binding=node", script, QUORATE_DISABLE_PLUGINS="quorate-numa")
    assert done.returncode == 2
    assert "QUORATE_DISABLE_PLUGINS leaves out quorate-numa" in done.stderr
