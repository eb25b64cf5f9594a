"""``launch``/``elastic_launch`` with real workers on one node; the agent's own tests say more."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from quorate import (
    ChildFailedError,
    DefaultLogsSpecs,
    LaunchConfig,
    RendezvousTimeoutError,
    Std,
    UnknownBackendError,
    UsageError,
    _one_node,
    elastic_launch,
    launch,
)
from quorate.launcher import run_script_path
from quorate.rendezvous import PortReservation

runs_a_job = pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")


def config(nproc_per_node: int = 1, **others: Any) -> LaunchConfig:
    others.setdefault("start_method", "fork")
    return LaunchConfig(1, 1, nproc_per_node, **others)


def tell(*args: Any) -> tuple[Any, ...]:
    return (int(os.environ["RANK"]), os.environ.get("EXTRA"), *args)


def fail() -> None:
    raise ValueError("no luck")


def test_launch_and_elastic_launch_are_one_whatever_was_imported_first() -> None:
    assert importlib.import_module("quorate.launcher")
    assert launch is elastic_launch


@runs_a_job
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_function_runs_in_every_worker_and_its_values_come_back_by_global_rank(start_method: str) -> None:
    """Arguments and values arrive unchanged."""
    made = config(2, start_method=start_method, environment={"EXTRA": "more"})
    assert elastic_launch(config=made, entrypoint=tell)("a", [1]) == {
        0: (0, "more", "a", [1]),
        1: (1, "more", "a", [1]),
    }


@runs_a_job
def test_a_launch_works_off_the_main_thread_and_again_with_the_same_configuration() -> None:
    made, results = config(), []
    thread = threading.Thread(target=lambda: results.append(launch(made, tell)(1)))
    thread.start()
    thread.join(60.0)
    assert not thread.is_alive()
    assert [*results, launch(made, tell)(2)] == [{0: (0, None, 1)}, {0: (0, None, 2)}]


@runs_a_job
def test_a_command_returns_nothing_and_takes_strings_and_paths(tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert launch(config(), "sh")("-c", 'echo "$0" > "$1"', "word", target) == {0: None}
    assert target.read_text() == "word\n"


@runs_a_job
def test_a_failure_is_raised_with_its_cause_and_can_be_pickled() -> None:
    with pytest.raises(ChildFailedError) as caught:
        launch(config(max_restarts=0), fail)()
    again = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, again):
        rank, failure = error.get_first_failure()
        assert (rank, failure.local_rank, failure.exitcode) == (0, 0, 1)
        assert error.name == "fail"
        assert error.reason


@runs_a_job
def test_a_failed_python_command_is_named_after_its_script(tmp_path: Path) -> None:
    script = tmp_path / "bad.py"
    script.write_text("raise SystemExit(3)\n")
    with pytest.raises(ChildFailedError) as caught:
        launch(config(max_restarts=0), sys.executable)("-u", str(script))
    assert caught.value.name == str(script)
    assert caught.value.get_first_failure()[1].exitcode == 3


@runs_a_job
def test_logs_go_where_the_specs_say_and_duplicates_to_a_file_of_their_own(tmp_path: Path) -> None:
    made = config(
        run_id="job",
        logs_specs=DefaultLogsSpecs(log_dir=str(tmp_path), redirects=Std.OUT),
        duplicate_stdout_filters=["loss"],
    )
    launch(made, "sh")("-c", "echo loss 1; echo other")
    (run,) = tmp_path.iterdir()
    assert run.name.startswith("job_")
    assert (run / "attempt_0" / "0" / "stdout.log").read_text() == "loss 1\nother\n"
    assert "other" not in (run / "attempt_0" / "filtered_stdout.log").read_text()
    assert "loss 1" in (run / "attempt_0" / "filtered_stdout.log").read_text()


@runs_a_job
def test_wrong_calls_are_refused_before_anything_starts() -> None:
    for entrypoint in ("", 3):
        with pytest.raises(UsageError, match="callable or a command"):
            launch(config(), entrypoint)  # type: ignore[arg-type] # the wrong call that is refused
    with pytest.raises(UsageError, match="neither an entrypoint nor a command"):
        launch(config(), None)()
    for words in (("a\0", "b"), ("true", "a\0b"), ("true", "\ud800")):
        with pytest.raises(UsageError, match="cannot be a word of a command"):
            launch(config(), None)(*words)
    with pytest.raises(UnknownBackendError, match="'nowhere'"):
        launch(config(rdzv_backend="nowhere"), tell)()
    with pytest.raises(UnknownBackendError, match="'teleport'"):
        launch(config(start_method="teleport"), tell)()


@runs_a_job
def test_arguments_of_a_command_become_text_and_the_command_may_be_one_of_them(tmp_path: Path) -> None:
    code = "import sys; assert sys.argv[1:] == ['3', '0.5', 'bytes', 'True'], sys.argv"
    for entrypoint, first in ((None, (sys.executable, "-c", code)), (sys.executable, ("-c", code))):
        assert launch(config(), entrypoint)(*first, 3, 0.5, b"bytes", True) == {0: None}
    made = config(logs_specs=DefaultLogsSpecs(log_dir=str(tmp_path), redirects=Std.OUT), role="")
    dollars = ("$local_rank", "${local_rank}x", "$${local_rank}", "$$local_rank", "$local_ranks", "$$", "$HOME")
    launch(made, "printf")("%s ", *dollars)
    (log,) = tmp_path.glob("*/attempt_0/0/stdout.log")
    assert log.read_text() == "0 0x ${local_rank} $local_rank $local_ranks $$ $HOME "


@runs_a_job
def test_a_handler_that_cannot_be_shut_down_does_not_hide_how_the_job_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = _one_node.get_rendezvous_handler

    def open_handler(*args: Any) -> Any:
        handler = real(*args)
        shut_down = handler.shutdown

        def shutdown() -> bool:
            shut_down()
            raise OSError("the network is gone")

        handler.shutdown = shutdown  # type: ignore[method-assign] # one real handler that fails at its end
        return handler

    monkeypatch.setattr(_one_node, "get_rendezvous_handler", open_handler)
    with pytest.raises(ChildFailedError):
        launch(config(max_restarts=0), "false")()
    assert launch(config(), "true")() == {0: None}
    assert capfd.readouterr().err.count("could not be shut down: OSError: the network is gone") == 2


@runs_a_job
def test_fewer_visible_devices_than_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker would else get a device that was hidden from it."""
    for visible, count in (("3", 1), ("", 0), (" 4 ,", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(UsageError, match=f"shows {count}; lower --nproc-per-node"):
            launch(config(2, virtual_local_rank=True), "true")()
    assert launch(config(2, virtual_local_rank=True, environment={"CUDA_VISIBLE_DEVICES": "5,6"}), "true")()


@runs_a_job
def test_a_round_that_does_not_form_raises_within_its_deadline_and_leaves_nothing() -> None:
    """No thread or socket left behind."""
    before = set(threading.enumerate())
    held = PortReservation()
    try:
        endpoint = f"127.0.0.1:{held.reserve('127.0.0.1')}"
        held.activate()  # from now on a server may listen there
        made = LaunchConfig(
            2, 2, 1, rdzv_backend="static", node_rank=0, rdzv_endpoint=endpoint, rdzv_configs={"join_timeout": 1}
        )
        with pytest.raises(RendezvousTimeoutError, match="1 of 2 nodes"):
            launch(made, "true")()
    finally:
        held.release()
    assert set(threading.enumerate()) <= before


@runs_a_job
def test_two_nodes_of_one_job_meet_at_a_fixed_address() -> None:
    """Over two agents, keys are exactly the global ranks."""
    held, results, errors = PortReservation(), {}, []

    def node(rank: int, endpoint: str) -> None:
        made = LaunchConfig(
            2, 2, rank + 1, rdzv_backend="static", node_rank=rank, rdzv_endpoint=endpoint, start_method="spawn"
        )
        try:
            results.update(launch(made, tell)("x"))
        except BaseException as error:
            errors.append(error)

    try:
        endpoint = f"127.0.0.1:{held.reserve('127.0.0.1')}"
        held.activate()  # from now on a server may listen there
        threads = [threading.Thread(target=node, args=(rank, endpoint)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    finally:
        held.release()
    assert errors == []
    assert results == {rank: (rank, None, "x") for rank in range(3)}


def test_a_script_runs_in_this_interpreter_as_the_main_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "main.py"
    script.write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    monkeypatch.setattr("sys.argv", ["before"])
    run_script_path(str(script), "a")
    assert capsys.readouterr().out == "__main__ ['a']\n"


def test_naming_launch_imports_no_agent() -> None:
    """Each worker of a function imports the names that its module uses; only the call needs the agent."""
    program = (
        "import sys; from quorate import LaunchConfig, elastic_launch, launch; from quorate.launcher import "
        "run_script_path; print([name for name in sys.modules if name.startswith('quorate.agent')])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
