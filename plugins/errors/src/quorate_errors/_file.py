"""Writing error files, in the format that TorchElastic reads and writes, with fields of our own beside it.

Reading is the core's business (``quorate.failures``).  Nothing here raises: an error that cannot be recorded must not
hide the error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from quorate.clock import wall_time_ns
from quorate.failures import read_error_file
from quorate.records import Cause, FailureRecord

__all__ = ["initialize", "record_exception", "write_failure"]

_LONGEST_MESSAGE = 8 * 1024
_LONGEST_CALLSTACK = 64 * 1024
_MOST_STDERR_LINES = 100


def initialize(error_file: str) -> None:
    """Prepare a worker: make the file's directory, and let a fatal signal print the Python stack to stderr."""
    try:
        os.makedirs(os.path.dirname(error_file) or ".", exist_ok=True)
    except OSError:
        pass  # recording will say so, should it come to that
    try:
        import faulthandler

        if not faulthandler.is_enabled():
            faulthandler.enable(all_threads=True)
    except (OSError, ValueError, AttributeError, RuntimeError):
        pass  # stderr is closed or has no descriptor


def record_exception(exception: BaseException, error_file: str) -> None:
    """Write ``exception`` to ``error_file``, unless it already holds an error.

    The first error of a worker stays: what is raised while it unwinds is a consequence.  A failure of workers of our
    own (an agent that runs inside a worker) passes the error of its first failed worker on.  KeyboardInterrupt and
    ``SystemExit(0)`` are ways to stop, not errors, and are not recorded.
    """
    try:
        data = _describe(exception)
        if data is not None:
            _write(error_file, data, replace=False)
    except Exception as problem:
        _complain(error_file, problem)


def write_failure(error_file: str, failure: FailureRecord) -> bool:
    """See :func:`quorate_errors.write_failure`."""
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
        _complain(error_file, problem)
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
    propagated = _of_first_worker(exception)
    if propagated is not None:
        return propagated
    now = wall_time_ns()
    message: dict[str, Any] = {"message": _shorten(_headline(exception), _LONGEST_MESSAGE)}
    if error_code is not None:
        message["errorCode"] = error_code
    message["extraInfo"] = {
        "py_callstack": _shorten(_callstack(exception), _LONGEST_CALLSTACK),
        "timestamp": str(now // 1_000_000_000),
    }
    return {"message": message, **_whereabouts(now), "cause": Cause.EXCEPTION.value}


def _whereabouts(now: int) -> dict[str, Any]:
    rank = os.environ.get("RANK", "")
    return {
        "time_ns": now,
        "host": os.uname().nodename if hasattr(os, "uname") else "",
        "pid": os.getpid(),
        "rank": int(rank) if rank.isascii() and rank.isdigit() else None,
    }


def _of_first_worker(exception: BaseException) -> dict[str, Any] | None:
    """Return the error data of the first failed worker, where ``exception`` is ours or TorchElastic's ChildFailedError.

    Told by its shape, so that torch need not be there.
    """
    if type(exception).__name__ != "ChildFailedError":
        return None
    try:
        _, failure = exception.get_first_failure()  # type: ignore[attr-defined] # told by its shape
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


def _callstack(exception: BaseException) -> str:
    from traceback import format_exception, format_tb

    try:
        return "".join(format_exception(type(exception), exception, exception.__traceback__))
    except Exception:
        return "".join(format_tb(exception.__traceback__))


def _shorten(text: str, longest: int) -> str:
    """Keep the beginning and, rather more of, the end: where it started and where it broke."""
    if len(text) <= longest:
        return text
    head = longest // 4
    tail = longest - head
    return f"{text[:head]}\n... {len(text) - longest} characters left out ...\n{text[-tail:]}"


def _write(path: str, data: Mapping[str, Any], *, replace: bool) -> None:
    """Write ``data`` beside ``path`` and rename it, so that a reader meets all of it or nothing."""
    if not replace and read_error_file(path) is not None:
        return
    # ASCII escapes everything that UTF-8 cannot hold, lone surrogates included.
    content = json.dumps(data, ensure_ascii=True, default=str)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "x", encoding="ascii") as file:
            file.write(content)
        # What is there is no error (torn, or not ours), or is ours to complete: either way it gives way.
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def _complain(path: str, problem: BaseException) -> None:
    try:
        sys.stderr.write(f"quorate: warning: the error could not be written to {path!r}: {problem}\n")
    except Exception:
        pass  # there is nobody left to tell
