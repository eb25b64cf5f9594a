"""Failures as results: what people and programs read of a failed worker."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quorate.failures import (
    ChildFailedError,
    ProcessFailure,
    message_from_abort,
    message_from_stderr,
    read_error_file,
    signal_name,
)
from quorate.records import Cause, FailureRecord


def _record(**changes: Any) -> FailureRecord:
    values: dict[str, Any] = {
        "rank": 5,
        "local_rank": 1,
        "pid": 77,
        "exit_code": 1,
        "cause": Cause.EXIT_CODE,
        "message": "RuntimeError: from stderr",
        "timestamp_ns": 1_700_000_000_000_000_000,
        "host": "host1",
        "stderr_tail": ("last words",),
    }
    values.update(changes)
    return FailureRecord(**values)


def _error_file(path: Path, message: object) -> str:
    path.write_text(json.dumps({"message": message}))
    return str(path)


# --- error files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"message": {"mess', b"\xff\xfe\x00", b"null", b"[]", b"{}", b'{"message": 3}', b"[" * 200_000],
)
def test_a_torn_error_file_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "error.json"
    path.write_bytes(content)
    assert read_error_file(str(path)) is None
    failure = ProcessFailure(0, 7, 1, str(path))
    assert (failure.error_file_data, failure.has_error_data) == ({"message": "<NONE>"}, False)
    assert "exit" in failure.message


def test_a_worker_without_an_error_file_has_what_programs_of_torchelastic_look_for(tmp_path: Path) -> None:
    failure = ProcessFailure(0, 7, 1, str(tmp_path / "none.json"))
    assert (failure.error_file, failure.error_file_data) == ("<N/A>", {"message": "<NONE>"})
    assert "<N" not in str(ChildFailedError("train.py", {0: failure}))


def test_the_time_beside_a_message_that_is_a_string_counts(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    path.write_text('{"message": "words", "timestamp": "1700000000"}')
    failure = ProcessFailure(0, 7, 1, str(path))
    assert (failure.message, failure.timestamp) == ("words", 1700000000)


def test_a_huge_or_absent_error_file_is_none(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 32)
    for path in (str(tmp_path / "huge"), str(tmp_path / "absent"), str(tmp_path), ""):
        assert read_error_file(path) is None


def test_both_forms_of_a_message_are_read(tmp_path: Path) -> None:
    long = {"message": "ValueError: x", "extraInfo": {"py_callstack": "Traceback", "timestamp": "123"}}
    failure = ProcessFailure(2, 7, 1, _error_file(tmp_path / "long", long))
    assert (failure.message, failure.timestamp, failure.local_rank) == ("ValueError: x", 123, 2)
    assert failure.error_file_data == {"message": long}
    assert ProcessFailure(2, 7, 1, _error_file(tmp_path / "short", "just words")).message == "just words"


@pytest.mark.parametrize("timestamp", ["soon", None, [], {}])
def test_a_time_stamp_without_sense_is_left_out(tmp_path: Path, timestamp: object) -> None:
    path = _error_file(tmp_path / "e", {"message": "x", "extraInfo": {"timestamp": timestamp}})
    assert ProcessFailure(0, 7, 1, path).timestamp > 0


# --- process failures -----------------------------------------------------------------------------------------------


def test_signals_are_named() -> None:
    assert [signal_name(code) for code in (-9, -11, -6, -15, 1, 0)] == ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM"] + [
        "<N/A>"
    ] * 2
    assert "99" in signal_name(-99)
    failure = ProcessFailure(0, 77, -9, "")
    assert failure.signal_name() == "SIGKILL"
    assert failure.message == "Signal 9 (SIGKILL) received by PID 77"


def test_a_record_has_more_than_an_exit_code() -> None:
    failure = ProcessFailure.from_record(_record())
    assert (failure.local_rank, failure.pid, failure.exitcode) == (1, 77, 1)
    assert failure.message == "RuntimeError: from stderr"
    assert failure.timestamp == 1_700_000_000


# --- the error of a job ---------------------------------------------------------------------------------------------


def test_the_first_failure_is_the_earliest() -> None:
    failures = {
        0: ProcessFailure.from_record(_record(rank=0, timestamp_ns=3_000_000_001)),
        1: ProcessFailure.from_record(_record(rank=1, timestamp_ns=3_000_000_000)),
        2: ProcessFailure.from_record(_record(rank=2, timestamp_ns=9_000_000_000)),
    }
    assert ChildFailedError("train.py", failures).get_first_failure() == (1, failures[1])


def test_equal_times_are_settled_by_rank() -> None:
    failures = {rank: ProcessFailure.from_record(_record(rank=rank)) for rank in (3, 1, 2)}
    assert ChildFailedError("train.py", failures).get_first_failure()[0] == 1


def test_the_report_names_the_cause_before_its_victims() -> None:
    failures = {
        rank: ProcessFailure.from_record(
            _record(rank=rank, local_rank=rank, exit_code=-15 if rank else 1, timestamp_ns=(1 + rank) * 10**9)
        )
        for rank in range(40)
    }
    report = str(ChildFailedError("train.py", failures, "all restarts are used"))
    for words in ("train.py failed", "all restarts are used", "rank 0", "host1", "RuntimeError: from stderr"):
        assert words in report
    assert "last words" in report
    assert (
        report.index("root cause")
        < report.index("rank 0")
        < report.index("failed after the root cause")
        < report.index("rank 1 ")
    )
    assert "SIGTERM" in report
    assert len(report.splitlines()) < 40


def test_the_report_shows_the_recorded_callstack(tmp_path: Path) -> None:
    message = {"message": "ValueError: x", "extraInfo": {"py_callstack": "Traceback\n  here\n", "timestamp": "5"}}
    path = _error_file(tmp_path / "error.json", message)
    report = str(ChildFailedError("train.py", {0: ProcessFailure(0, 7, 1, path)}))
    assert "|   here" in report
    assert path in report


def test_an_error_without_failures_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ChildFailedError("train.py", {})


def test_failures_go_through_pickle(tmp_path: Path) -> None:
    """An agent in a child process hands them to its parent."""
    path = _error_file(tmp_path / "error.json", {"message": "ValueError: x", "extraInfo": {"timestamp": "5"}})
    failures = {0: ProcessFailure(0, 7, 1, path), 1: ProcessFailure.from_record(_record(error_data={"message": "y"}))}
    error = ChildFailedError("train.py", failures, "reason")
    Path(path).unlink()
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ChildFailedError
    assert (copy.name, copy.reason, str(copy)) == (error.name, error.reason, str(error))
    rank, first = copy.get_first_failure()
    assert (rank, first.message, first.timestamp, first.error_file) == (0, "ValueError: x", 5, path)
    assert copy.failures[1].record == error.failures[1].record


# --- the last lines of stderr ---------------------------------------------------------------------------------------


def _stderr_of(script: str) -> list[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr.splitlines()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("raise KeyError", "KeyError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("try:\n 1/0\nexcept Exception as e:\n raise ValueError('second') from e", "ValueError: second"),
        ("raise ValueError('one\\n\\ntwo: three')", "ValueError: one"),
        ("import json; json.loads('x')", "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("def f(n): f(n + 1)\nf(0)", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_the_exception_line_of_a_real_traceback(script: str, message: str) -> None:
    lines = _stderr_of(script)
    assert message_from_stderr(lines) == message
    # Also after the traceback's beginning has scrolled out, and with something printed after it.
    assert message_from_stderr([*lines, "", "bye"]) == message
    assert message_from_stderr([f"[rank0]: {line}" for line in lines]) == message


def test_the_beginning_of_a_traceback_may_be_missing() -> None:
    lines = ['  File "train.py", line 3, in main', "    fail()", "ValueError: x"]
    assert message_from_stderr(lines) == "ValueError: x"
    assert message_from_stderr(lines[1:]) is None  # no frame: anything may have printed that


DRAWN = {
    "colours": '\x1b[35mTraceback (most recent call last):\x1b[0m\n  File \x1b[35m"x"\x1b[0m, line 1, in f\n'
    "\x1b[1;35mValueError\x1b[0m: \x1b[35mbad\x1b[0m",
    "rich": "╭─── \x1b[1mTraceback (most recent call last)\x1b[0m ───╮\n│ x.py:1 in f │\n│ ❱ 1 raise ValueError │\n"
    "╰─────╯\nValueError: bad",
    "rich in ASCII": "+--- Traceback (most recent call last) ---+\n| x.py:1 in f |\n+-------+\nValueError: bad",
    "IPython": "-------\nValueError          Traceback (most recent call last)\nCell In[1], line 1\n----> 1 f()\n\n"
    "File x.py:1, in f()\n----> 1 raise ValueError('bad')\n\nValueError: bad",
}


@pytest.mark.parametrize("how", DRAWN)
def test_tracebacks_as_libraries_draw_them(how: str) -> None:
    assert message_from_stderr([*DRAWN[how].split("\n"), "", "then", "more"]) == "ValueError: bad"


def test_the_last_traceback_counts() -> None:
    first = ["Traceback (most recent call last):", '  File "a", line 1, in f', "KeyError: 1"]
    last = ["Traceback (most recent call last):", '  File "b", line 1, in g', "ValueError: 2"]
    assert message_from_stderr([*first, "", "During handling ...:", "", *last]) == "ValueError: 2"
    assert message_from_stderr([*last, "Exception ignored in: <function x>", *first]) == "ValueError: 2"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_an_exception_group() -> None:
    message = message_from_stderr(_stderr_of("raise ExceptionGroup('several', [ValueError(1), KeyError(2)])"))
    assert message in ("ExceptionGroup: several (2 sub-exceptions)", "ValueError: 1", "KeyError: 2")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["all is well", "loss: 0.1"],
        ["Error: something that no traceback led to"],
        ["Traceback (most recent call last):"],
        ["Traceback (most recent call last):", "  File"],
        ["\x00\x1b[31m", "|" * 10_000, " " * 100_000],
    ],
)
def test_without_a_traceback_there_is_no_message(lines: list[str]) -> None:
    assert message_from_stderr(lines) is None


#: Aborts when the module that holds it is taken apart, as a library does that is left to Python's end.
_ABORTS_LATER = """
import ctypes
new = ctypes.pythonapi.PyCapsule_New
new.restype = ctypes.py_object
left = new(ctypes.c_void_p(1), None, ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p))
"""
_DAEMON = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
_DEEP = "def f(n):\n    f(n - 1) if n else os.abort()\nimport os\n"


def _aborted(script: str) -> list[str]:
    command = [sys.executable, "-X", "faulthandler", "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == -6
    return process.stderr.splitlines()


@pytest.mark.parametrize("code", [-6, 134])
@pytest.mark.parametrize("more", ["", _DAEMON])
def test_a_program_that_had_finished_when_it_aborted(code: int, more: str) -> None:
    message = message_from_abort(code, ["some words", *_aborted(_ABORTS_LATER + more)])
    assert message is not None
    assert message.startswith(
        "the script had finished; a library aborted while Python ended (SIGABRT): if it uses torch"
    )
    assert "destroy_process_group()" in message


def test_the_library_is_named_if_it_is_known() -> None:
    lines = _aborted(_ABORTS_LATER)
    lines = [
        *(line for line in lines if not line.startswith("Extension")),
        "Extension modules: a.b, torch._C (total: 2)",
    ]
    assert "; torch aborted while Python ended" in str(message_from_abort(-6, lines))


@pytest.mark.parametrize(
    "script",
    [
        "import os; os.abort()",
        _DAEMON + "import os; os.abort()",
        _DEEP + "f(3)",
        _DEEP + "f(300)",  # more frames than Python shows
        # in another thread, while the program runs
        "import threading, os, time\nthreading.Thread(target=os.abort).start()\ntime.sleep(60)",
    ],
)
def test_a_program_that_aborted_while_it_ran(script: str) -> None:
    assert message_from_abort(-6, _aborted(script)) is None


def test_nothing_is_said_of_other_ends() -> None:
    lines = _aborted(_ABORTS_LATER)
    assert message_from_abort(1, lines) is None
    assert message_from_abort(-11, lines) is None
    assert message_from_abort(-6, []) is None
    assert message_from_abort(-6, ["terminate called without an active exception"]) is None


def test_the_message_is_bounded() -> None:
    lines = ["Traceback (most recent call last):", '  File "a", line 1, in f', "ValueError: " + "x" * 1_000_000]
    message = message_from_stderr(lines)
    assert message is not None
    assert len(message) <= 2048
