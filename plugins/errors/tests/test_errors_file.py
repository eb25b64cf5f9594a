"""Error files: what is written, what stays, and that TorchElastic and we read each other's."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quorate.catalogue import ErrorRecorder
from quorate.failures import ChildFailedError, ProcessFailure
from quorate.records import Cause, FailureRecord
from quorate_errors import plugin, write_failure

DEADLINE_SECONDS = 120.0


@pytest.fixture
def recorder() -> ErrorRecorder:
    """The recorder that the plugin offers."""
    (recorder,) = plugin.quorate_register_error_recorder()
    assert recorder.name == "file"
    return recorder


@pytest.fixture
def error_file(tmp_path: Path) -> Path:
    """Where a worker's error belongs; the directory is not there yet."""
    return tmp_path / "attempt_0" / "0" / "error.json"


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def _only_file(error_file: Path) -> bool:
    return os.listdir(error_file.parent) == [error_file.name]


def test_an_exception_is_written_in_the_agreed_format(recorder: ErrorRecorder, error_file: Path) -> None:
    recorder.record_exception(_raised(ValueError("no such thing")), str(error_file))
    data = json.loads(error_file.read_text())
    message = data["message"]
    assert message["message"] == "ValueError: no such thing"
    assert message["extraInfo"]["py_callstack"].startswith("Traceback (most recent call last)")
    assert "in _raised" in message["extraInfo"]["py_callstack"]
    assert message["extraInfo"]["timestamp"] == str(data["time_ns"] // 1_000_000_000)
    assert (data["pid"], data["host"], data["cause"]) == (os.getpid(), os.uname().nodename, "exception")
    assert recorder.read(str(error_file)) == data
    assert _only_file(error_file)


def test_the_first_error_stays(recorder: ErrorRecorder, error_file: Path) -> None:
    recorder.record_exception(ValueError("cause"), str(error_file))
    recorder.record_exception(RuntimeError("consequence"), str(error_file))
    data = recorder.read(str(error_file))
    assert data is not None
    assert data["message"]["message"] == "ValueError: cause"


@pytest.mark.parametrize(
    "content", [b"", b'{"message": {"mess', b"\xff\xfe", b"[1]", b'{"message": 1}', b"[" * 100_000]
)
def test_a_file_without_an_error_is_replaced(recorder: ErrorRecorder, error_file: Path, content: bytes) -> None:
    error_file.parent.mkdir(parents=True)
    error_file.write_bytes(content)
    assert recorder.read(str(error_file)) is None
    recorder.record_exception(ValueError("real"), str(error_file))
    data = recorder.read(str(error_file))
    assert data is not None
    assert data["message"]["message"] == "ValueError: real"


def test_huge_errors_are_bounded_and_keep_both_ends(recorder: ErrorRecorder, error_file: Path) -> None:
    recorder.record_exception(_raised(ValueError("begin" + "x" * 5_000_000 + "end")), str(error_file))
    assert error_file.stat().st_size < 200_000
    data = recorder.read(str(error_file))
    assert data is not None
    assert data["message"]["message"].startswith("ValueError: begin")
    assert data["message"]["message"].endswith("end")


def test_exceptions_without_a_printable_message_are_recorded(recorder: ErrorRecorder, tmp_path: Path) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("has no message")

    odd = [UnprintableError(), ValueError("\udc80 lone surrogate"), ValueError("nul \x00"), ValueError()]
    for number, error in enumerate(odd):
        path = str(tmp_path / str(number))
        recorder.record_exception(_raised(error), path)
        data = recorder.read(path)
        assert data is not None
        assert data["message"]["message"].startswith(type(error).__name__)


def test_exceptions_in_a_chain_are_all_in_the_callstack(recorder: ErrorRecorder, error_file: Path) -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as caught:
        fail()
    recorder.record_exception(caught.value, str(error_file))
    stack = json.loads(error_file.read_text())["message"]["extraInfo"]["py_callstack"]
    assert "KeyError: 'first'" in stack
    assert "ValueError: second" in stack


def test_keyboard_interrupt_and_exit_code_0_are_not_errors(recorder: ErrorRecorder, error_file: Path) -> None:
    for way in (KeyboardInterrupt(), SystemExit(), SystemExit(0)):
        recorder.record_exception(way, str(error_file))
    assert not error_file.exists()
    recorder.record_exception(SystemExit(7), str(error_file))
    assert json.loads(error_file.read_text())["message"]["errorCode"] == 7


def test_a_path_that_cannot_be_written_is_reported_not_raised(
    recorder: ErrorRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    path = str(tmp_path / "file" / "error.json")
    recorder.initialize(path)
    recorder.record_exception(ValueError("x"), path)
    assert path in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]
    directory = tmp_path / "error.json"
    directory.mkdir()
    recorder.record_exception(ValueError("x"), str(directory))
    assert str(directory) in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["error.json", "file"]


def test_a_file_that_cannot_be_read_holds_no_error(recorder: ErrorRecorder, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    for path in (str(tmp_path), str(tmp_path / "absent"), str(huge), "", "<N/A>"):
        assert recorder.read(path) is None


def test_a_reader_never_finds_a_part_of_a_file(recorder: ErrorRecorder, error_file: Path) -> None:
    record = _failure(message="x" * 5000, stderr_tail=("y" * 1000,) * 100)
    assert write_failure(str(error_file), record)
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            write_failure(str(error_file), record)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            assert recorder.read(str(error_file)) is not None
    finally:
        done.set()
        writer.join()
    assert _only_file(error_file)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(recorder: ErrorRecorder, error_file: Path, umask: int) -> None:
    """As for logs: a monitor of another user may read both, or neither."""
    before = os.umask(umask)
    try:
        recorder.record_exception(ValueError("x"), str(error_file))
    finally:
        os.umask(before)
    assert stat.S_IMODE(error_file.stat().st_mode) == 0o666 & ~umask


def test_initialize_makes_the_directory(recorder: ErrorRecorder, error_file: Path) -> None:
    recorder.initialize(str(error_file))
    assert stat.S_ISDIR(error_file.parent.stat().st_mode)
    assert not error_file.exists()


# --- what the agent adds --------------------------------------------------------------------------------------------


def _failure(**changes: Any) -> FailureRecord:
    values: dict[str, Any] = {
        "rank": 5,
        "local_rank": 1,
        "pid": 77,
        "exit_code": 1,
        "cause": Cause.EXIT_CODE,
        "message": "exit code 1",
        "timestamp_ns": 1_700_000_000_123_456_789,
        "node_id": "n1",
        "host": "host1",
        "stderr_tail": ("one", "two"),
    }
    values.update(changes)
    return FailureRecord(**values)


def test_a_worker_that_recorded_nothing_gets_a_file_from_its_agent(error_file: Path, recorder: ErrorRecorder) -> None:
    assert write_failure(str(error_file), _failure(exit_code=-9, cause=Cause.OUT_OF_MEMORY, message="killed"))
    data = recorder.read(str(error_file))
    assert data is not None
    assert data["message"] == {
        "message": "killed",
        "errorCode": -9,
        "extraInfo": {"py_callstack": "", "timestamp": "1700000000"},
    }
    assert (data["node"], data["host"], data["rank"], data["cause"]) == ("n1", "host1", 5, "out_of_memory")
    assert (data["time_ns"], data["stderr_tail"]) == (1_700_000_000_123_456_789, ["one", "two"])


def test_what_the_worker_recorded_stays_beside_what_the_agent_adds(error_file: Path, recorder: ErrorRecorder) -> None:
    recorder.record_exception(_raised(ValueError("mine")), str(error_file))
    before = recorder.read(str(error_file))
    assert before is not None
    assert write_failure(str(error_file), _failure(cause=Cause.EXCEPTION))
    after = recorder.read(str(error_file))
    assert after is not None
    assert (after["message"], after["time_ns"]) == (before["message"], before["time_ns"])
    assert (after["node"], after["exit_code"]) == ("n1", 1)


# --- an agent that runs inside a worker -----------------------------------------------------------------------------


def test_the_error_of_the_inner_jobs_first_worker_is_written(
    recorder: ErrorRecorder, error_file: Path, tmp_path: Path
) -> None:
    inner = tmp_path / "inner.json"
    recorder.record_exception(_raised(ValueError("root")), str(inner))
    failure = ChildFailedError("train.py", {0: ProcessFailure(0, 1, 3, str(inner))})
    recorder.record_exception(_raised(failure), str(error_file))
    message = json.loads(error_file.read_text())["message"]
    assert (message["message"], message["errorCode"]) == ("ValueError: root", 3)


def test_without_an_inner_file_the_report_is_recorded(recorder: ErrorRecorder, error_file: Path) -> None:
    failure = ChildFailedError("train.py", {0: ProcessFailure(0, 1, -9, "")})
    recorder.record_exception(_raised(failure), str(error_file))
    message = json.loads(error_file.read_text())["message"]["message"]
    assert "train.py failed" in message
    assert "SIGKILL" in message


# --- real processes, ours and TorchElastic's ------------------------------------------------------------------------


def _run(script: str, error_file: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(error_file), "RANK": "3", **more}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)


_MAIN = """
@record
def main():
    raise ValueError("no such thing")
main()
"""


def test_quorate_record_uses_the_file_recorder(recorder: ErrorRecorder, error_file: Path) -> None:
    done = _run("from quorate import record\n" + _MAIN, error_file)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: no such thing"
    assert "warning" not in done.stderr
    data = recorder.read(str(error_file))
    assert data is not None
    assert (data["message"]["message"], data["rank"]) == ("ValueError: no such thing", 3)


def test_a_worker_without_an_error_leaves_none(error_file: Path) -> None:
    script = "from quorate import record\n@record\ndef main(): raise SystemExit(0)\nassert main() is None; print('on')"
    done = _run(script, error_file)
    assert (done.returncode, done.stdout) == (0, "on\n"), "the function has succeeded, and the program goes on"
    assert not error_file.exists()


def test_files_of_torchelastics_record_are_read(recorder: ErrorRecorder, error_file: Path) -> None:
    error_file.parent.mkdir(parents=True)
    script = "from torch.distributed.elastic.multiprocessing.errors import record\n" + _MAIN
    assert _run(script, error_file).returncode == 1
    data = recorder.read(str(error_file))
    assert data is not None
    failure = ProcessFailure(0, 1, 1, str(error_file))
    assert failure.message == "ValueError: no such thing"
    assert failure.timestamp == int(data["message"]["extraInfo"]["timestamp"])


def test_torchelastic_reads_ours(recorder: ErrorRecorder, error_file: Path) -> None:
    recorder.record_exception(_raised(ValueError("no such thing")), str(error_file))
    assert write_failure(str(error_file), _failure(cause=Cause.EXCEPTION))
    timestamp = int(json.loads(error_file.read_text())["message"]["extraInfo"]["timestamp"])
    script = f"""
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file={str(error_file)!r})
assert failure.message["message"] == "ValueError: no such thing", failure.message  # as for its own files
assert failure.timestamp == {timestamp}, failure.timestamp
assert "ValueError: no such thing" in str(ChildFailedError("train.py", {{0: failure}}))
"""
    done = _run(script, error_file.with_name("unused.json"))
    assert done.returncode == 0, done.stderr


def test_the_error_in_torchelastics_childfailederror_is_written(error_file: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner.json"
    inner.write_text(json.dumps({"message": {"message": "ValueError: root", "extraInfo": {"timestamp": "5"}}}))
    script = f"""
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from quorate import record
@record
def main():
    raise ChildFailedError("inner", {{0: ProcessFailure(local_rank=0, pid=1, exitcode=4, error_file={str(inner)!r})}})
main()
"""
    assert _run(script, error_file).returncode == 1
    data: Mapping[str, Any] = json.loads(error_file.read_text())
    assert data["message"] == {"message": "ValueError: root", "errorCode": 4, "extraInfo": {"timestamp": "5"}}


def test_a_worker_that_does_not_fail_imports_nothing_heavy() -> None:
    script = (
        "import sys; from quorate_errors import plugin; plugin.quorate_register_error_recorder();"
        "print(sorted({'torch', 'traceback', 'subprocess', 'logging'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True)
    assert done.stdout.strip() == "[]"
