"""Handlers of errors by torch's interface: what they record, and hand to the process above."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import ProcessFailure
from quorate_torchrun.elastic.multiprocessing.errors import ErrorHandler, get_error_handler, record

# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    return path


def test_the_handler_records_an_exception(error_file: Path) -> None:
    handler = get_error_handler()
    handler.initialize()
    try:
        raise RuntimeError("bad")
    except RuntimeError as error:
        handler.record_exception(error)
    message = json.loads(error_file.read_text())["message"]
    assert message["message"] == "RuntimeError: bad"
    assert "raise RuntimeError" in message["extraInfo"]["py_callstack"]
    assert int(message["extraInfo"]["timestamp"]) > 0


def test_without_an_error_file_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    ErrorHandler().record_exception(ValueError("nowhere"))


@pytest.mark.parametrize(
    ("message", "exit_code", "expected"),
    [
        ({"message": "bad", "errorCode": 0}, 7, {"message": "bad", "errorCode": 7}),
        ({"message": "bad"}, 0, {"message": "bad"}),
        ("bad", 7, "bad"),
    ],
)
def test_the_error_of_a_child_is_handed_upwards(
    error_file: Path, tmp_path: Path, message: Any, exit_code: int, expected: Any
) -> None:
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"message": message}))
    error_file.write_text("what was there")
    ErrorHandler().dump_error_file(str(child), exit_code)
    assert json.loads(error_file.read_text())["message"] == expected
    with pytest.raises(ValueError, match="not an error file"):
        ErrorHandler().dump_error_file(str(tmp_path / "absent.json"))


def test_record_calls_the_handler_that_it_is_given(error_file: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Mine(ErrorHandler):
        def initialize(self) -> None:
            seen.append("ready")

        def record_exception(self, e: BaseException) -> None:
            seen.append(str(e))

    def leave(how: BaseException | None) -> str:
        if how is not None:
            raise how
        return "value"

    recorded = record(leave, Mine())
    assert recorded(None) == "value"
    assert recorded(SystemExit(0)) is None
    for how in (ValueError("bad"), SystemExit(3)):
        with pytest.raises(type(how)):
            recorded(how)
    assert seen == ["ready", "ready", "ready", "bad", "ready"]
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"message": {"message": "of the child"}}))
    failed = quorate.ChildFailedError("job", {0: ProcessFailure(0, 1, 3, str(child))})
    with pytest.raises(quorate.ChildFailedError):
        record(leave)(failed)
    assert json.loads(error_file.read_text())["message"] == {"message": "of the child", "errorCode": 3}
