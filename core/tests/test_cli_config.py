"""What the flags amount to: the launch configuration, the command, and the number of workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from quorate import LaunchConfig, LogsSpecs, PluginError, UsageError, WorkerSpec, get_rendezvous_handler
from quorate.catalogue import CliOption
from quorate.cli import _run, _values as kind
from quorate.cli._devices import count_cpus, count_gpus, count_workers
from quorate.cli._flags import FLAGS, Flag
from quorate.cli._parse import parse
from quorate.cli._run import build_command, build_config, flags_with

SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHON_EXEC", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("")
    return path


def config_of(*argv: str, **environment: str) -> LaunchConfig:
    return build_config(parse(argv, environment, FLAGS))


def meeting_of(*argv: str) -> tuple[Any, ...]:
    made = config_of(*argv)
    return made.rdzv_backend, made.rdzv_endpoint, made.node_rank, made.master_addr, made.master_port


@pytest.mark.parametrize(
    ("argv", "meeting"),
    [
        ([], ("standalone", "", None, None, None)),
        (["--standalone", "--master-port=5"], ("standalone", "", None, None, None)),
        (["--standalone", "--rdzv-backend=c10d", "--rdzv-endpoint=h:1"], ("standalone", "", None, None, None)),
        (["--master-addr=h", "--master-port=5"], ("standalone", "", None, "h", 5)),
        (["--master-port=0"], ("standalone", "", None, None, None)),
        (["--nnodes=2"], ("static", "127.0.0.1:29501", 0, "127.0.0.1", 29500)),
        (["--nnodes=2", "--node-rank=1", "--master-addr=h"], ("static", "h:29501", 1, "h", 29500)),
        (["--nnodes=2", "--master-addr=[::1]", "--master-port=7"], ("static", "[::1]:8", 0, "::1", 7)),
        (["--nnodes=2", "--master-addr= h "], ("static", "h:29501", 0, "h", 29500)),
        (["--nnodes=2", "--rdzv-endpoint=h:9"], ("static", "h:9", 0, None, None)),
        (["--nnodes=2", "--rdzv-endpoint=h:9", "--master-port=7"], ("static", "h:9", 0, None, 7)),
        (["--nnodes=2", "--master-port-range=5:9"], ("static", "127.0.0.1:29501", 0, "127.0.0.1", None)),
        (["--nnodes=2:4", "--rdzv-backend=c10d", "--rdzv-endpoint=h"], ("c10d", "h", None, None, None)),
        (["--nnodes=2", "--rdzv-backend=c10d", "--node-rank=1", "--master-addr=h"], ("c10d", "", 1, None, None)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_where_the_nodes_meet(argv: list[str], meeting: tuple[Any, ...]) -> None:
    assert meeting_of(*argv) == meeting


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        (["--master-port-range=5:9"], {}, (None, "5:9")),
        ([], {"PET_MASTER_PORT_RANGE": "5:9"}, (None, "5:9")),
        (["--rdzv-conf=master_port_range=5:9"], {}, (None, "5:9")),
        (["--master-port=7"], {"PET_MASTER_PORT_RANGE": "5:9"}, (7, None)),
        (["--master-port-range=5"], {"PET_MASTER_PORT": "7"}, (None, "5:5")),
        ([], {"PET_MASTER_PORT": "7", "PET_MASTER_PORT_RANGE": "5:9"}, (None, "5:9")),
        (["--nnodes=2", "--rdzv-backend=tcp", "--rdzv-endpoint=h:1", "--master-port-range=5:9"], {}, (None, "5:9")),
        (["--standalone", "--master-port-range=5:9", "--master-port=7"], {}, (None, "5:9")),
    ],
)
@pytest.mark.needs("quorate-rendezvous-static")
def test_the_port_of_the_workers_or_the_range_that_it_is_from(
    argv: list[str], environment: dict[str, str], expected: tuple[int | None, str | None]
) -> None:
    made = config_of(*argv, **environment)
    assert (made.master_port, made.rendezvous_parameters().get("master_port_range")) == expected


@pytest.mark.needs("quorate-rendezvous-static")
def test_a_port_and_a_range_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--master-port=7 and --master-port-range=5:9 contradict each other"):
        config_of("--master-port=7", "--master-port-range=5:9")
    with pytest.raises(UsageError, match=r"--master-port-range=9:5 is not LOW:HIGH.*such as 29500:29509"):
        config_of("--master-port-range=9:5")
    with pytest.raises(UsageError, match="master_port_range is '9:5'; it must be LOW:HIGH"):
        get_rendezvous_handler(config_of("--rdzv-conf=master_port_range=9:5").rendezvous_parameters())


def test_flags_reach_the_configuration() -> None:
    made = config_of(
        *["--nnodes=2:3", "--nproc-per-node=4", "--role=r", "--rdzv-id=j", "--max-restarts=5", "--monitor-interval=2"],
        *["--shutdown-timeout=6", "--exit-barrier-timeout=7", "--signals-to-handle=SIGUSR1", "--start-method=fork"],
        *["--virtual-local-rank", "--event-log-handler=console", "--log-dir=logs", "--local-ranks-filter=0,12"],
        *["--duplicate-stdout-filters=a,b", "--local-addr=here"],
        PET_RDZV_CONF="join_timeout=8",
    )
    assert (made.min_nodes, made.max_nodes, made.nproc_per_node, made.role, made.run_id) == (2, 3, 4, "r", "j")
    assert (made.max_restarts, made.monitor_interval, made.shutdown_timeout, made.exit_barrier_timeout) == (5, 2, 6, 7)
    assert (made.signals_to_handle, made.start_method, made.virtual_local_rank) == (("SIGUSR1",), "fork", True)
    assert (made.event_log_handler, made.local_addr, made.timeouts().join_timeout) == ("console", "here", 8.0)
    specs = made.worker_logs_specs()
    assert (specs.root_log_dir, specs.local_ranks_filter) == ("logs", frozenset({0, 12}))
    assert specs.duplicate_stdout_filters == ("a", "b")


def command_of(*argv: str) -> tuple[Any, Sequence[str]]:
    return build_command(parse(argv, {}, FLAGS))


def test_commands(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_of(str(script), "a") == (sys.executable, ("-u", str(script), "a"))
    assert command_of("-m", "pkg.mod", "a") == (sys.executable, ("-u", "-m", "pkg.mod", "a"))
    assert command_of("--no-python", "sh", "a") == ("sh", ("a",))
    assert command_of("node-${local_rank}.py")[1] == ("-u", "node-${local_rank}.py")
    monkeypatch.setenv("PYTHON_EXEC", "/opt/python")
    assert command_of(str(script))[0] == "/opt/python"


def test_options_of_plugins_are_flags_too() -> None:
    seen: list[str] = []

    def remember(value: str, settings: dict[str, Any]) -> None:
        seen.append(value)
        settings["cells"] = value

    options = {
        "cell_size": CliOption("cell_size", "how large", "3", remember),
        "numa-binding": CliOption("numa-binding", "binds", None, remember),
    }
    flags = flags_with(options.values())
    assert [flag.name for flag in flags if flag.section == "From plugins"] == ["numa-binding", "cell-size"]
    made = build_config(parse(["--cell-size=5", "--numa-binding=node"], {}, flags))
    assert (seen, made.settings) == (["node", "5"], {"cells": "5"})
    assert build_config(parse([], {}, flags)).settings == {"cells": "3"}
    with pytest.raises(PluginError, match="--nnodes"):
        flags_with([CliOption("nnodes", "no")])


@pytest.mark.needs("quorate-rendezvous-static")
def test_a_new_flag_is_a_row_of_the_table_and_what_reads_the_setting() -> None:
    """CONTRIBUTING promises that a flag touches two files."""
    row = Flag("cell-count", "N", None, kind.whole, "how many", is_setting=True)
    made = build_config(parse(["--cell-count=5"], {}, (*FLAGS, row)))
    assert made.settings == {"cell_count": 5}
    assert build_config(parse([], {}, (*FLAGS, row))).settings == {}
    handler = get_rendezvous_handler(made.rendezvous_parameters())
    try:
        assert WorkerSpec.from_config(made, handler, "true").settings == {"cell_count": 5}
    finally:
        handler.shutdown()


def test_every_flag_has_a_reader() -> None:
    read_by_the_command = re.findall(r'parsed(?:\.settings)?\["([a-z-]+)"\]', Path(_run.__file__).read_text())
    fields = {field.name for field in attrs.fields(LaunchConfig)}
    unread = {flag.name for flag in FLAGS if flag.field not in fields and not (flag.is_setting or flag.plugin_only)}
    assert unread - set(read_by_the_command) == set()


def test_logs_specs_are_found_by_their_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_logs.py").write_text(
        "from quorate import DefaultLogsSpecs\nclass Mine(DefaultLogsSpecs):\n    pass\nother = 3\n"
    )
    info = tmp_path / "own_logs-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(
        "[torchrun.logs_specs]\nmine = own_logs:Mine\nother = own_logs:other\ngone = own_logs:absent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    specs = config_of("--logs-specs=mine", "--log-dir=here").logs_specs
    assert isinstance(specs, LogsSpecs)
    assert (type(specs).__name__, specs.root_log_dir) == ("Mine", "here")
    assert type(config_of("--logs-specs=default").logs_specs).__name__ == "DefaultLogsSpecs"
    for name, word in (("other", "not a subclass"), ("gone", "AttributeError")):
        with pytest.raises(PluginError, match=word):
            config_of(f"--logs-specs={name}")


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "installed", "count"),
    [
        ({}, 8, 8),
        ({}, 0, 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,2, 3"}, 8, 3),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,9,1"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "1,1"}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,MIG-b"}, 1, 2),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 0, 0),
        ({"HIP_VISIBLE_DEVICES": "0,1"}, 4, 2),
    ],
)
def test_visible_gpus_are_counted_as_the_driver_does(environment: dict[str, str], installed: int, count: int) -> None:
    assert count_gpus(environment, lambda: installed) == count


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"ROCR_VISIBLE_DEVICES": "0,2,5"}, 3),
        ({"ROCR_VISIBLE_DEVICES": ""}, 0),
        ({"ROCR_VISIBLE_DEVICES": "0,2,5", "HIP_VISIBLE_DEVICES": "1,2,3"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "GPU-a,GPU-b", "CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"GPU_DEVICE_ORDINAL": "0,1"}, 2),
        ({"GPU_DEVICE_ORDINAL": "0,1", "HIP_VISIBLE_DEVICES": "0"}, 1),
    ],
)
def test_variables_of_amds_driver_narrow_its_own_devices_only(environment: dict[str, str], count: int) -> None:
    assert count_gpus(environment, lambda: 8, lambda: True) == count
    amd = ("ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
    rest = {name: value for name, value in environment.items() if name not in amd}
    assert count_gpus(environment, lambda: 8, lambda: False) == count_gpus(rest, lambda: 8)


def test_a_device_that_torch_knows_is_counted_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(
        "print('a note of the library')\n"
        "class accelerator:\n"
        "    current_accelerator = staticmethod(lambda: type('Device', (), {'type': 'npu'}))\n"
        "    device_count = staticmethod(lambda: 4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = set(sys.modules)
    assert config_of("--nproc-per-node=npu").nproc_per_node == 4
    with pytest.raises(UsageError, match="no device of the kind 'xpu' is visible"):
        count_workers("xpu")
    assert "torch" not in set(sys.modules) - before


def test_cpus_are_those_that_this_process_may_use() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
            "from quorate.cli._devices import count_workers; print(count_workers('cpu'))",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.stdout == "1\n", result.stderr
    assert count_cpus() == len(os.sched_getaffinity(0))


def test_auto_is_one_per_gpu_else_one_per_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_workers("auto") == count_cpus()
    with pytest.raises(UsageError, match="no GPU is visible"):
        count_workers("gpu")
    monkeypatch.setattr("quorate.cli._devices._count_installed", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert (count_workers("auto"), count_workers("gpu")) == (2, 2)
