"""Torchrun's names: the parser, namespaces, configurations, and what a launch returns and raises."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quorate
import quorate_torchrun as torchrun
from quorate.flags import all_flags
from quorate_torchrun._config import to_quorate

#: Writes in one piece, for the other worker writes too.
SCRIPT = """\
import os, sys
sys.stdout.write(" ".join([os.environ["RANK"], os.environ["WORLD_SIZE"], *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose main module is a file-less ``-c``."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


# --- the parser -----------------------------------------------------------------------------------------------------


def test_the_parser_has_every_flag_in_every_spelling() -> None:
    options = {option for action in torchrun.get_args_parser()._actions for option in action.option_strings}
    for flag in all_flags():
        assert {f"--{flag.name}", f"--{flag.field}"} <= options
    assert {"-m", "-r", "-t"} <= options


def test_actions_of_the_parser_can_be_added_to_another_one() -> None:
    """A command line that embeds torchrun's is made this way."""
    other = argparse.ArgumentParser()
    for action in torchrun.get_args_parser()._actions:
        if action.dest not in ("training_script", "training_script_args", "help"):
            other._add_action(action)
    args = other.parse_args(["--nproc_per_node", "2", "--standalone"])
    assert (args.nproc_per_node, args.standalone, args.max_restarts) == ("2", True, 0)


def test_unambiguous_beginnings_of_flags_are_read_and_ambiguous_ones_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = torchrun.parse_args(["--nnode", "1:2", "--redirect=3", "train.py", "--lr", "1"])
    assert (args.nnodes, args.redirects) == ("1:2", "3")
    assert (args.training_script, args.training_script_args) == ("train.py", ["--lr", "1"])
    with pytest.raises(SystemExit):
        torchrun.parse_args(["--master=x", "train.py"])
    assert "ambiguous" in capsys.readouterr().err


def test_variables_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_MAX_RESTARTS", "4")
    monkeypatch.setenv("PET_STANDALONE", "1")
    monkeypatch.setenv("PET_ROLE", "")
    args = torchrun.parse_args(["train.py"])
    assert (args.max_restarts, args.standalone, args.role) == (4, True, "default")
    assert torchrun.parse_args(["--max-restarts=1", "train.py"]).max_restarts == 1


@pytest.mark.parametrize(("text", "bounds"), [("3", (3, 3)), ("1:4", (1, 4)), (2, (2, 2))])
def test_bounds_of_nodes(text: Any, bounds: tuple[int, int]) -> None:
    assert torchrun.parse_min_max_nnodes(text) == bounds


def test_bounds_of_nodes_that_are_none() -> None:
    with pytest.raises(RuntimeError):
        torchrun.parse_min_max_nnodes("1:2:3")
    with pytest.raises(ValueError, match="x"):
        torchrun.parse_min_max_nnodes("x")


def test_local_world_size() -> None:
    assert torchrun.determine_local_world_size("3") == torchrun.determine_local_world_size(3) == 3
    assert torchrun.determine_local_world_size("cpu") == len(os.sched_getaffinity(0))
    for kind in ("gpu", "nonsense"):
        with pytest.raises(ValueError, match=kind):
            torchrun.determine_local_world_size(kind)


# --- namespaces and configurations ----------------------------------------------------------------------------------


def test_values_of_a_namespace_may_be_strings_and_attributes_may_be_missing(script: str) -> None:
    args = argparse.Namespace(
        nnodes="1", nproc_per_node="2", max_restarts="5", monitor_interval="0.5", local_ranks_filter="", rdzv_id="none",
        tee="1", duplicate_stdout_filters=["a", "b,c"], training_script=script, training_script_args=["x", 3],
    )  # fmt: skip
    config, entrypoint, argv = torchrun.config_from_args(args)
    assert (config.nproc_per_node, config.max_restarts, config.monitor_interval) == (2, 5, 0.5)
    assert config.duplicate_stdout_filters == ["a", "b,c"]
    assert config.run_id == ""
    assert (entrypoint, argv) == (sys.executable, ["-u", script, "x", "3"])


def test_torchs_own_namespace_is_understood(script: str) -> None:
    """The defaults of torch's parser mean what they mean to torchrun."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=host:29400", script])
    config, _, _ = torchrun.config_from_args(args)
    assert (config.min_nodes, config.rdzv_backend, config.rdzv_endpoint) == (2, "c10d", "host:29400")
    assert config.node_rank is None, "torchrun's default of 0 is not a wish of every node"
    assert config.run_id == "none"
    args = get_args_parser().parse_args(["--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", script])
    config, _, _ = torchrun.config_from_args(args)
    assert (config.rdzv_backend, config.node_rank) == ("static", 1)
    assert (config.master_addr, config.master_port) == ("10.0.0.1", 29500)


def test_the_rank_goes_to_the_script_without_use_env(script: str) -> None:
    args = torchrun.parse_args([script, "a"])
    args.use_env = False
    assert torchrun.config_from_args(args)[2] == ["-u", script, "--local-rank=${local_rank}", "a"]


def test_a_configuration_is_a_dataclass_that_may_be_changed() -> None:
    config = torchrun.LaunchConfig(1, 2, 3)
    config.numa_options, config.max_restarts = None, 7
    assert {each.name for each in dataclasses.fields(config)} >= {"numa_options", "logs_specs", "shutdown_timeout"}
    frozen = to_quorate(dataclasses.replace(config, min_nodes=2, rdzv_endpoint="host:1"))
    assert (frozen.min_nodes, frozen.max_nodes, frozen.nproc_per_node, frozen.max_restarts) == (2, 2, 3, 7)
    assert frozen.backend() == "tcp"
    assert to_quorate(frozen) is frozen


def test_fields_of_torchs_configuration_are_all_there() -> None:
    from torch.distributed.launcher.api import LaunchConfig

    theirs, ours = ([each.name for each in dataclasses.fields(kind)] for kind in (LaunchConfig, torchrun.LaunchConfig))
    assert ours[: len(theirs)] == theirs


def test_static_of_torch_names_the_workers_meeting_point() -> None:
    config = torchrun.LaunchConfig(1, 1, 1, rdzv_backend="static", rdzv_endpoint="127.0.0.1:29512")
    frozen = to_quorate(config)
    assert (frozen.backend(), frozen.master_addr, frozen.master_port) == ("standalone", "127.0.0.1", 29512)
    config = dataclasses.replace(config, max_nodes=2, rdzv_configs={"rank": 1})
    frozen = to_quorate(config)
    assert (frozen.rdzv_endpoint, frozen.master_port, frozen.rank_hint()) == ("127.0.0.1:29513", 29512, 1)
    with pytest.raises(ValueError, match="port"):
        to_quorate(dataclasses.replace(config, rdzv_endpoint="127.0.0.1"))


@pytest.mark.parametrize("endpoint", ["", "localhost:0", "127.0.0.1:0"])
def test_c10d_at_a_free_local_port_is_one_node_without_a_store_of_torch(endpoint: str) -> None:
    """Which programs of torch ask for: no process has to import torch before the first round."""
    from torch.distributed.launcher.api import LaunchConfig

    for kind in (torchrun.LaunchConfig, LaunchConfig):
        frozen = to_quorate(kind(1, 1, 2, run_id="job", rdzv_backend="c10d", rdzv_endpoint=endpoint))
        assert (frozen.backend(), frozen.run_id) == ("standalone", "job")


NUMA = torchrun.LaunchConfig(1, 1, 1, numa_options=argparse.Namespace(affinity_mode="node"))


def test_numa_options_are_refused_where_nothing_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate_torchrun._config.get_host", lambda: quorate.PluginHost(disabled=["quorate-numa"]))
    with pytest.raises(quorate.UsageError, match="numa_options"):
        to_quorate(NUMA)


@pytest.mark.needs("quorate-numa")
def test_numa_options_are_the_flag_of_the_plugin_that_binds() -> None:
    assert to_quorate(NUMA).settings["numa_binding"] == "node"


# --- launches -------------------------------------------------------------------------------------------------------


def test_run_of_a_namespace_with_strings(script: str) -> None:
    code = (
        "import sys, argparse, quorate_torchrun as t\n"
        "t.run(argparse.Namespace(nproc_per_node='2', standalone=True, training_script=sys.argv[1],"
        " training_script_args=['a']))\n"
        "assert 'torch' not in sys.modules"
    )
    done = run_python(code, script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 2 a", "1 2 a"]


def test_main_and_the_module_take_a_command_line(script: str) -> None:
    line = ["--nproc_per_node=2", "--redirect=0", script, "b"]
    main = run_python("import sys, quorate_torchrun; quorate_torchrun.main(sys.argv[1:])", *line)
    module = subprocess.run(
        [sys.executable, "-m", "quorate_torchrun", *line], capture_output=True, text=True, timeout=120
    )
    for done in (main, module):
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == ["0 2 b", "1 2 b"]


def rank(*args: Any) -> tuple[Any, ...]:
    return (int(os.environ["RANK"]), *args)


def boom() -> None:
    raise ValueError("no luck")


def test_values_come_back_by_rank() -> None:
    config = torchrun.LaunchConfig(1, 1, 2, start_method="fork")
    assert torchrun.elastic_launch(config, rank)("a") == {0: (0, "a"), 1: (1, "a")}


def test_a_command_may_be_given_as_arguments_that_are_not_strings(tmp_path: Path) -> None:
    config = torchrun.LaunchConfig(1, 1, 1)
    code = "import sys; assert sys.argv[1:] == ['3', '0.5'], sys.argv"
    assert torchrun.launch_agent(config, None, [sys.executable, "-c", code, 3, 0.5]) == {0: None}
    with pytest.raises(quorate.UsageError):
        torchrun.launch_agent(config, None, [])


@pytest.mark.parametrize("torch_is_loaded", [False, True])
def test_failures_are_torchs_own_where_torchs_errors_are_loaded(tmp_path: Path, torch_is_loaded: bool) -> None:
    module = "torch.distributed.elastic.multiprocessing.errors" if torch_is_loaded else "quorate"
    code = (
        "import quorate, quorate_torchrun, sys\n"
        f"import {module} as errors\n"
        "config = quorate_torchrun.LaunchConfig(1, 1, 2)\n"
        'fail = \'import os, time; os.environ["RANK"] == "1" and os._exit(7); time.sleep(60)\'\n'
        "try:\n"
        "    quorate_torchrun.elastic_launch(config, sys.executable)('-c', fail)\n"
        "except errors.ChildFailedError as error:\n"
        "    rank, failure = error.get_first_failure()\n"
        "    assert type(failure) is errors.ProcessFailure, type(failure)\n"
        "    print(rank, failure.exitcode, failure.error_file, failure.error_file_data['message'])\n"
        f"assert ('torch' in sys.modules) is {torch_is_loaded}"
    )
    done = run_python(code, QUORATE_DISABLE_PLUGINS="errors")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 7 <N/A> <NONE>\n"


def test_a_rendezvous_that_fails_raises_torchs_error_where_it_is_loaded() -> None:
    code = (
        "import quorate, quorate_torchrun as t\n"
        "from quorate.testing import free_port\n"
        "from torch.distributed.elastic.rendezvous import RendezvousTimeoutError\n"
        "endpoint = f'127.0.0.1:{free_port()}'\n"
        "config = t.LaunchConfig(2, 2, 1, rdzv_backend='tcp', rdzv_endpoint=endpoint, rdzv_timeout=1)\n"
        "try:\n"
        "    t.elastic_launch(config, 'true')()\n"
        "except RendezvousTimeoutError as error:\n"
        "    assert isinstance(error.__cause__, quorate.RendezvousTimeoutError); print('timed out')"
    )
    done = run_python(code)
    assert done.stdout == "timed out\n", done.stderr


def test_a_health_check_server_is_told_and_stopped() -> None:
    class Callback:
        delegate: Any = None

        def set_delegate(self, delegate: Any) -> None:
            self.delegate = delegate

    class Server:
        alive_callback = Callback()
        stopped = False

        def stop(self) -> None:
            self.stopped = True

    server = Server()
    assert torchrun.launch_agent(torchrun.LaunchConfig(1, 1, 1), "true", [], server) == {0: None}
    assert server.stopped
    assert server.alive_callback.delegate() > 0


# --- logs specs -----------------------------------------------------------------------------------------------------

OWN_SPECS = """
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

class Mine(DefaultLogsSpecs):
    def __init__(self, log_dir=None, redirects=Std.NONE, tee=Std.NONE, local_ranks_filter=None):
        assert isinstance(redirects, Std), type(redirects)
        super().__init__(log_dir, Std.ALL, tee, local_ranks_filter)
"""


def test_logs_specs_of_torchs_interface_are_taken_from_the_entry_point_group(tmp_path: Path, script: str) -> None:
    installed = tmp_path / "installed"  # not the current directory, which brings no plugin in
    info = installed / "own_specs-1.0.dist-info"
    info.mkdir(parents=True)
    (installed / "own_specs.py").write_text(OWN_SPECS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-specs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchrun.logs_specs]\nmine = own_specs:Mine\n")
    command = [sys.executable, "-m", "quorate_torchrun", "--nproc-per-node=2", "--logs-specs=mine", "--log-dir=logs"]
    done = subprocess.run(
        [*command, script], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    texts = sorted(path.read_text() for path in (tmp_path / "logs").glob("*/attempt_0/*/stdout.log"))
    assert texts == ["0 2\n", "1 2\n"]


@pytest.mark.parametrize("kind", ["DefaultLogsSpecs", "Mine"])
def test_logs_specs_of_torch_are_taken_in_a_configuration(tmp_path: Path, kind: str) -> None:
    code = (
        OWN_SPECS + "import sys, quorate_torchrun as t\n"
        f"config = t.LaunchConfig(1, 1, 1, {kind}(log_dir=sys.argv[1], redirects=Std.ALL))\n"
        "t.elastic_launch(config, 'echo')('here')"
    )
    done = run_python(code, str(tmp_path / "logs"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (log,) = (tmp_path / "logs").glob("*/attempt_0/0/stdout.log")
    assert log.read_text() == "here\n"


def test_what_is_not_logs_specs_is_refused() -> None:
    with pytest.raises(quorate.UsageError, match="LogsSpecs"):
        to_quorate(torchrun.LaunchConfig(1, 1, 1, object()))
