"""Writes error files, in the format that TorchElastic reads and writes, with fields of our own beside it.

Nothing here raises, because a problem with the file must not hide the error.  Files are read by
:mod:`quorate.failures`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from quorate.clock import wall_time_ns
from quorate.failures import read_error_file
from quorate.files import write_atomically
from quorate.net import host_name
from quorate.records import Cause, FailureRecord
from quorate.text import whole_number

_LONGEST_MESSAGE = 8 * 1024
_LONGEST_CALL_STACK = 64 * 1024
_MOST_STDERR_LINES = 100


def initialize(error_file: str) -> None:
    """Prepare a worker: make the file's directory, and let a fatal signal print the Python stack to stderr."""
    with suppress(OSError):  # an error that cannot be recorded is reported then
        os.makedirs(os.path.dirname(error_file) or ".", exist_ok=True)
    with suppress(OSError, ValueError, AttributeError, RuntimeError):  # stderr is closed or has no descriptor
        if not faulthandler.is_enabled():
            faulthandler.enable(all_threads=True)


def record_exception(exception: BaseException, error_file: str) -> None:
    """Write ``exception`` to ``error_file``, unless it already holds an error.

    The first error of a worker stays, because what is raised while it unwinds is a consequence.  For a
    ChildFailedError (of an agent that runs inside a worker) the error of its first failed worker is written.
    KeyboardInterrupt and ``SystemExit(0)`` are not errors and are not recorded.
    """
    try:
        data = _describe(exception)
        if data is not None:
            _write(error_file, data, replace=False)
    except Exception as problem:
        _warn(error_file, problem)


def write_failure(error_file: str, failure: FailureRecord) -> bool:
    """Add ``failure`` to its error file, or make one; returns whether it could be written.

    What the worker recorded stays as it is; node, cause and the last lines of stderr are put beside it.
    """
    try:
        recorded = failure.error_data or read_error_file(error_file)
        if recorded is None:
            seconds = str(failure.timestamp_ns // 1_000_000_000)
            recorded = {
                "message": {
                    "message": _shorten(failure.message, _LONGEST_MESSAGE),
                    "errorCode": failure.exit_code,
                    "extraInfo": {"py_callstack": "", "timestamp": seconds},
                }
            }
        data = dict(recorded)
        data.setdefault("time_ns", failure.timestamp_ns)
        data.update(
            node=failure.node_id,
            host=failure.host,
            rank=failure.rank,
            pid=failure.pid,
            exit_code=failure.exit_code,
            restart_count=failure.restart_count,
            cause=failure.cause.value,
            stderr_tail=[_shorten(line, 1024) for line in failure.stderr_tail[-_MOST_STDERR_LINES:]],
        )
        _write(error_file, data, replace=True)
    except Exception as problem:
        _warn(error_file, problem)
        return False
    return True


def _describe(exception: BaseException) -> dict[str, Any] | None:
    error_code: int | None = None
    if isinstance(exception, KeyboardInterrupt):
        return None
    if isinstance(exception, SystemExit):
        if exception.code in (None, 0):
            return None
        error_code = exception.code if isinstance(exception.code, int) else 1
    inner = _data_of_first_worker(exception)
    if inner is not None:
        return inner
    now = wall_time_ns()
    message: dict[str, Any] = {"message": _shorten(_headline(exception), _LONGEST_MESSAGE)}
    if error_code is not None:
        message["errorCode"] = error_code
    message["extraInfo"] = {
        "py_callstack": _shorten(_call_stack(exception), _LONGEST_CALL_STACK),
        "timestamp": str(now // 1_000_000_000),
    }
    return {"message": message, **_identity(now), "cause": Cause.EXCEPTION.value}


def _identity(now: int) -> dict[str, Any]:
    rank = os.environ.get("RANK", "")
    return {
        "time_ns": now,
        "host": host_name(),
        "pid": os.getpid(),
        "rank": whole_number(rank),
    }


def _data_of_first_worker(exception: BaseException) -> dict[str, Any] | None:
    """Return the error data of the first failed worker, where ``exception`` is ours or TorchElastic's ChildFailedError.

    It is recognized by its name and attributes, so that torch is not needed.
    """
    if type(exception).__name__ != "ChildFailedError":
        return None
    try:
        _, failure = exception.get_first_failure()  # type: ignore[attr-defined] # caught below
        recorded = failure.error_file_data
        if not (isinstance(recorded, Mapping) and isinstance(recorded.get("message"), Mapping)):
            recorded = read_error_file(str(failure.error_file))
        if recorded is None:
            return None
        data = dict(recorded)
        if isinstance(data["message"], Mapping):
            data["message"] = {"errorCode": int(failure.exitcode), **data["message"]}
        json.dumps(data)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return data


def _headline(exception: BaseException) -> str:
    try:
        return f"{type(exception).__name__}: {exception}"
    except Exception as problem:
        return f"{type(exception).__name__}: <its message cannot be read: {type(problem).__name__}>"


def _call_stack(exception: BaseException) -> str:
    from traceback import format_exception, format_tb  # a slow import that only a failing worker needs

    try:
        return "".join(format_exception(type(exception), exception, exception.__traceback__))
    except Exception:
        return "".join(format_tb(exception.__traceback__))


def _shorten(text: str, longest: int) -> str:
    """Keep a quarter from the beginning and three quarters from the end, which says where it broke."""
    if len(text) <= longest:
        return text
    head = longest // 4
    tail = longest - head
    return f"{text[:head]}\n... {len(text) - longest} characters left out ...\n{text[-tail:]}"


def _write(path: str, data: Mapping[str, Any], *, replace: bool) -> None:
    """Write ``data``; without ``replace`` only where there is no error yet (a torn file is not one)."""
    if not replace and read_error_file(path) is not None:
        return
    # ASCII escapes everything that UTF-8 cannot hold, lone surrogates included.
    content = json.dumps(data, ensure_ascii=True, default=str)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_atomically(path, content, mode=None)


def _warn(path: str, problem: BaseException) -> None:
    with suppress(Exception):  # stderr is closed
        sys.stderr.write(f"quorate: warning: the error could not be written to {path!r}: {problem}\n")
