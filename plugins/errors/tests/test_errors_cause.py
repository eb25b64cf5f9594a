"""How failures are classified: real deaths of real processes, and the kernel's counters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quorate.catalogue import PluginKind
from quorate.plugins import PluginHost
from quorate.records import Cause, FailureRecord
from quorate_errors import plugin
from quorate_errors._cause import classify
from quorate_errors._memory import MemoryKills, counter_files

NO_KILLS = MemoryKills([])
BROKEN = Cause.BROKEN_COLLECTIVE


def _failure(exit_code: int, **changes: Any) -> FailureRecord:
    cause = Cause.SIGNAL if exit_code < 0 else Cause.EXIT_CODE
    values: dict[str, Any] = {"cause": cause, "message": "", "timestamp_ns": 0, **changes}
    return FailureRecord(rank=0, local_rank=0, pid=1, exit_code=exit_code, **values)


def _failure_of(command: list[str], cwd: Path) -> FailureRecord:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    return _failure(done.returncode, stderr_tail=tuple(done.stderr.splitlines()[-20:]))


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["-c", "raise SystemExit(3)"], Cause.EXIT_CODE),
        (["-c", "import os; os._exit(1)"], Cause.EXIT_CODE),
        (["-c", "raise ValueError('no such thing')"], Cause.EXCEPTION),
        (["-c", "import no_such_module"], Cause.EXCEPTION),
        (["-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"], Cause.SIGNAL),
        (["-c", "import os; os.abort()"], Cause.SIGNAL),
        (["no_such_script.py"], Cause.START_FAILED),
        (["-m", "no_such_module"], Cause.START_FAILED),
        (["-m", "no_such_package.module"], Cause.START_FAILED),
        (["broken.py"], Cause.START_FAILED),
        (["imports_broken.py"], Cause.EXCEPTION),
        (["directory"], Cause.START_FAILED),
    ],
)
def test_real_python_processes(tmp_path: Path, arguments: list[str], cause: Cause) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "imports_broken.py").write_text("import broken\n")
    (tmp_path / "directory").mkdir()
    failure = _failure_of([sys.executable, *arguments], tmp_path)
    assert classify(failure, NO_KILLS) is cause, failure


def test_a_shell_that_finds_no_command(tmp_path: Path) -> None:
    assert classify(_failure_of(["sh", "-c", "no-such-command"], tmp_path), NO_KILLS) is Cause.START_FAILED
    (tmp_path / "script").write_text("")
    assert classify(_failure_of(["sh", "-c", "./script"], tmp_path), NO_KILLS) is Cause.START_FAILED


def test_recorded_errors_are_exceptions_whatever_the_exit_code() -> None:
    recorded = {"message": {"message": "ValueError: x"}}
    assert classify(_failure(127, error_data=recorded), NO_KILLS) is Cause.EXCEPTION
    assert classify(_failure(-6, error_data=recorded), NO_KILLS) is Cause.SIGNAL


GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:53972."
NCCL = "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or network"
STORE = "torch.distributed.DistNetworkError: failed to recv, got 0 bytes"
WATCHDOG = "[rank3]:[E1] [PG ID 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9) ran for 600015 ms"


@pytest.mark.parametrize("line", [GLOO, NCCL, STORE])
def test_a_connection_to_another_worker_that_broke_is_a_broken_collective(line: str) -> None:
    """The line may be printed, recorded, or anywhere in the traceback of another exception of the script."""
    assert classify(_failure(1, stderr_tail=("Traceback (most recent call last):", line)), NO_KILLS) is BROKEN
    assert classify(_failure(1, message=line, error_data={"message": line}), NO_KILLS) is BROKEN
    callstack = f"Traceback ...\n{line}\n\nThe above exception ...\nValueError: step 7 failed\n"
    recorded = {"message": {"message": "ValueError: step 7 failed", "extraInfo": {"py_callstack": callstack}}}
    assert classify(_failure(1, error_data=recorded), NO_KILLS) is BROKEN


def test_an_abort_by_c10ds_watchdog_is_a_broken_collective() -> None:
    assert classify(_failure(-6, stderr_tail=(WATCHDOG,)), NO_KILLS) is BROKEN
    assert classify(_failure(-9, stderr_tail=(WATCHDOG,)), NO_KILLS) is Cause.SIGNAL
    assert classify(_failure(-6, stderr_tail=("free(): invalid pointer",)), NO_KILLS) is Cause.SIGNAL


@pytest.mark.parametrize(
    "line",
    [
        "ConnectionResetError: [Errno 104] Connection reset by peer",  # a script's own connection
        "RuntimeError: [gloo/transport/tcp/device.cc:83] unable to find address for: eth7",
        "torch.distributed.DistBackendError: NCCL error: ncclUnhandledCudaError: out of memory",
    ],
)
def test_other_errors_of_torch_or_of_connections_are_exceptions(line: str) -> None:
    assert classify(_failure(1, stderr_tail=("Traceback (most recent call last):", line)), NO_KILLS) is Cause.EXCEPTION


@pytest.mark.parametrize("data", [{"message": 7}, {"message": {"extraInfo": 7}}, {"message": {"extraInfo": {}}}])
def test_a_recorded_error_of_any_shape_is_read(data: dict[str, Any]) -> None:
    assert classify(_failure(1, error_data=data), NO_KILLS) is Cause.EXCEPTION


@pytest.mark.parametrize("cause", [Cause.START_FAILED, Cause.HANG, Cause.UNHEALTHY])
def test_a_cause_that_the_agent_reported_stays(cause: Cause) -> None:
    assert classify(_failure(-9, cause=cause), NO_KILLS) is cause


def test_each_memory_kill_explains_one_sigkill(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 5\noom_group_kill 0\n")
    kills = MemoryKills([str(tmp_path / "absent"), str(events)])
    assert classify(_failure(-9), kills) is Cause.SIGNAL
    events.write_text("low 0\noom 4\noom_kill 7\noom_group_kill 0\n")
    assert classify(_failure(-15), kills) is Cause.SIGNAL
    assert classify(_failure(-9), kills) is Cause.OUT_OF_MEMORY
    assert classify(_failure(137), kills) is Cause.OUT_OF_MEMORY
    assert classify(_failure(-9), kills) is Cause.SIGNAL
    events.unlink()
    assert classify(_failure(-9), kills) is Cause.SIGNAL


def test_malformed_counters_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "memory.events"
    for content in ("", "oom_kill many\n", "oom_kill_disable 0\nunder_oom 0\n"):
        path.write_text(content)
        assert not MemoryKills([str(path)]).take()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_this_machine_names_its_counters() -> None:
    files = counter_files()
    assert files[-1] == "/proc/vmstat"
    assert len(files) == len(set(files))
    assert os.path.exists("/proc/vmstat")


def test_the_plugin_answers_the_hook() -> None:
    host = PluginHost(paths=[], extra=[("errors", plugin)])
    assert (
        host.decide("cause", _failure(1, stderr_tail=("Traceback (most recent call last):", "E: x"))) is Cause.EXCEPTION
    )
    assert "file" in host.catalogue(PluginKind.ERROR_RECORDER)
