"""Functions as workers of the start method warm."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import StartError

from . import process_local_functions as functions
from .conftest import Make, launch
from .warm_workers import run

# --- functions ------------------------------------------------------------------------------------------------------


def test_a_function_gets_its_arguments_and_returns_its_value(make: Make) -> None:
    starter = make("json")
    for turn in range(2):
        exits = run(starter, [launch(rank, functions.echo, turn, rank, b"x" * 100_000) for rank in range(2)])
        assert [exits[rank].return_value for rank in range(2)] == [(turn, rank, b"x" * 100_000) for rank in range(2)]
        assert [exits[rank].exit_code for rank in range(2)] == [0, 0]


def test_a_functions_exception_is_recorded_and_printed(make: Make, tmp_path: Path) -> None:
    err, error_file = tmp_path / "err", tmp_path / "error.json"
    (event,) = run(make(), [launch(0, functions.boom, stderr=str(err), error_file=str(error_file))]).values()
    assert event.exit_code == 1
    assert err.read_text().startswith("Traceback (most recent call last):\n")
    assert err.read_text().endswith("ValueError: a reason\n")
    assert "_template" not in err.read_text()
    assert "a reason" in error_file.read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_a_function_may_exit(make: Make, code: int) -> None:
    assert run(make(), [launch(0, functions.leave, code)])[0].exit_code == code


def test_a_function_may_share_a_queue_with_the_agent(make: Make) -> None:
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        assert run(make(), [launch(0, functions.put_simply, queue, "words")])[0].exit_code == 0
        assert queue.get() == "words"
    finally:
        queue.close()


def test_a_function_finds_what_every_worker_finds(make: Make, tmp_path: Path) -> None:
    worker = launch(0, functions.surroundings, stdout=str(tmp_path / "out"), environment={"A": "b"})
    found = run(make(), [worker])[0].return_value
    assert found["sid"]
    assert found["env"] == {"A": "b", "QUORATE_AGENT_TOKEN": "token", "NOT_GIVEN": None}
    assert (found["mask"], found["term"], found["int"], found["daemon"]) == (set(), True, True, False)
    assert found["parent"]
    assert (tmp_path / "out").read_text() == "to stdout\n"


def test_a_function_passes_no_descriptor_on(make: Make) -> None:
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        assert run(make(), [launch(0, functions.inheritable, queue)])[0].return_value == [0, 1, 2]
    finally:
        queue.close()


def test_a_function_that_cannot_be_passed_is_refused(make: Make) -> None:
    with pytest.raises(StartError, match="top level"):
        make().start([launch(0, lambda: None)])
