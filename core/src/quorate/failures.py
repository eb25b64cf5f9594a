"""What is reported of failed workers: ``ProcessFailure`` and ``ChildFailedError``, and reading error files.

Writing error files is a plugin's business (``quorate-errors``); the format is TorchElastic's and read here, so that the
agent understands files written by TorchElastic, by the plugin, or by anything else that follows it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from .records import Cause, FailureRecord, evolve

if TYPE_CHECKING:
    from .verdict import JobVerdict

__all__ = [
    "ChildFailedError",
    "ProcessFailure",
    "copy_error_data",
    "message_from_abort",
    "message_from_stderr",
    "read_error_file",
    "signal_name",
]

_LARGEST_ERROR_FILE_BYTES = 1 << 20
_LONGEST_MESSAGE = 2048
# "[rank0]: ", as torch writes before each line of a traceback; "  | ", as Python draws around exception groups.
_PREFIX = r"^(?:\[[^\]]{1,64}\]: ?)?(?: *[|+] )*"
_FRAME = r'^\s+File "[^"]*", line \d+'
# What Python's faulthandler writes when the process aborts.
_ABORTED = "Fatal Python error: Aborted"
_NO_FRAME = "  <no Python frame>"
_FRAMES_LEFT_OUT = "  ..."
_OF_THE_PROGRAM = r'^  File ".*", line \d+ in <module>$'
_EXCEPTION_LINE = r"(?s)^[A-Za-z_][\w.]*(?:: .*)?$"


def signal_name(exit_code: int) -> str:
    """Return ``"SIGKILL"`` for -9 and so on; ``"<N/A>"`` for an exit code that is no signal."""
    if exit_code >= 0:
        return "<N/A>"
    import signal

    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def read_error_file(path: str) -> dict[str, Any] | None:
    """Return the JSON object in the error file ``path``; ``None`` if it is absent, torn, too large or not an object."""
    import json  # only a failure pays for it

    try:
        if os.path.getsize(path) > _LARGEST_ERROR_FILE_BYTES:
            return None
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("message"), (str, dict)):
        return None
    return data


def message_from_stderr(lines: Sequence[str]) -> str | None:
    """Return the exception line of the last Python traceback in ``lines``, ``None`` if there is no traceback.

    Arguments:
        lines: the last lines of a worker's stderr; the beginning of the traceback may have scrolled out.

    The line is at most 2 KiB.  Tracebacks of ignored exceptions do not count, and prefixes such as ``[rank0]:`` and
    the frames that are drawn around exception groups are left out.
    """
    import re  # only a failure pays for it

    found: str | None = None
    in_frames = ignored = False
    for raw in lines:
        line = re.sub(_PREFIX, "", raw.rstrip("\r\n"), count=1)
        if line.startswith("Exception ignored in"):
            ignored = True
        elif line.startswith(("Traceback (most recent call last)", "Exception Group Traceback")):
            in_frames = True
        elif line.startswith((" ", "\t")):
            in_frames = in_frames or re.match(_FRAME, line) is not None
        elif in_frames and line:
            if re.match(_EXCEPTION_LINE, line) and not ignored:
                found = line[:_LONGEST_MESSAGE]
            in_frames = ignored = False
    return found


def message_from_abort(exit_code: int, lines: Sequence[str]) -> str | None:
    """Return what to say of a Python program that had finished and aborted while Python ended; ``None`` for any other.

    Arguments:
        exit_code: of the worker, or of a shell that waited for it (128 + signal).
        lines: the last lines of its stderr, with the stacks of all Python threads (``PYTHONFAULTHANDLER``).  If none
            of them begins in the program, the program's own code has ended.
    """
    if exit_code not in (-6, 128 + 6):
        return None
    lines = [line.rstrip("\r\n") for line in lines]
    if _ABORTED not in lines:
        return None
    stacks = lines[len(lines) - lines[::-1].index(_ABORTED) :]
    import re  # only a failure pays for it

    if _NO_FRAME not in stacks or _FRAMES_LEFT_OUT in stacks or any(re.match(_OF_THE_PROGRAM, line) for line in stacks):
        return None
    if any(line.startswith("Extension modules:") and " torch." in line for line in stacks):
        return (
            "the script had finished; torch aborted while Python ended (SIGABRT): "
            "call torch.distributed.destroy_process_group() at the end of the script"
        )
    return (
        "the script had finished; a library aborted while Python ended (SIGABRT): "
        "if it uses torch.distributed, call destroy_process_group() at the end of the script"
    )


@final
class ProcessFailure:
    """One failed worker.

    Arguments:
        local_rank: its rank on its node.
        pid: its process id there.
        exitcode: its exit code, negative for a signal.
        error_file: where it may have written its error (read at once).

    Attributes:
        error_file_data: the JSON object of the error file, ``{}`` without one.
        message: the recorded message, or one made from the exit code and the last lines of stderr.
        timestamp: seconds since the epoch, from the error file or the time of exit.
        record: everything that is known (:class:`quorate.records.FailureRecord`), where quorate made the failure.
    """

    def __init__(
        self, local_rank: int, pid: int, exitcode: int, error_file: str, record: FailureRecord | None = None
    ) -> None:
        self.local_rank, self.pid, self.exitcode, self.error_file = local_rank, pid, exitcode, error_file
        self.record = record
        data = record.error_data if record is not None else read_error_file(error_file)
        self.error_file_data: dict[str, Any] = dict(data) if data else {}
        self.message, self.timestamp = self._explain()

    def _explain(self) -> tuple[str, int]:
        recorded = self.error_file_data.get("message")
        timestamp = self.record.timestamp_ns // 1_000_000_000 if self.record else _mtime(self.error_file)
        if isinstance(recorded, Mapping):
            extra = recorded.get("extraInfo")
            if isinstance(extra, Mapping):
                try:
                    timestamp = int(extra.get("timestamp", timestamp))
                except (TypeError, ValueError):
                    pass
            return str(recorded.get("message", recorded)), timestamp
        if isinstance(recorded, str):
            return recorded, timestamp
        if self.record is not None and self.record.message:
            return self.record.message, timestamp
        if self.exitcode < 0:
            return f"Signal {-self.exitcode} ({self.signal_name()}) received by PID {self.pid}", timestamp
        return (
            f"exited with code {self.exitcode} and left no error file; decorate the entrypoint with @record",
            timestamp,
        )

    def signal_name(self) -> str:
        """Return the name of the signal that ended it, ``"<N/A>"`` if none did."""
        return signal_name(self.exitcode)

    def timestamp_isoformat(self) -> str:
        """Return the time in local ISO form."""
        from datetime import datetime

        return datetime.fromtimestamp(self.timestamp).isoformat(sep="_")

    @classmethod
    def from_record(cls, record: FailureRecord) -> ProcessFailure:
        """Build it from a record, possibly of another node."""
        return cls(record.local_rank, record.pid, record.exit_code, record.error_file, record)

    def __repr__(self) -> str:
        return (
            f"ProcessFailure(local_rank={self.local_rank}, pid={self.pid}, exitcode={self.exitcode}, "
            f"error_file={self.error_file!r})"
        )


def copy_error_data(data: Mapping[str, Any], path: str | None) -> None:
    """Write ``data`` as the error file ``path`` (by temporary file and rename); does nothing without a path.

    An agent that is itself somebody's child hands its root cause upwards this way.  Never raises.
    """
    if not path:
        return
    import json

    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(data, file)
        os.replace(temporary, path)
    except (OSError, TypeError, ValueError):
        pass


def _mtime(path: str) -> int:
    try:
        return int(os.path.getmtime(path))
    except OSError:
        from .clock import wall_seconds

        return wall_seconds()


@final
class ChildFailedError(Exception):
    """Workers failed and no restarts were left.

    Arguments:
        name: the entrypoint.
        failures: global rank -> failure, at least one.
        reason: the sentence that was recorded as the job's end.
        verdict: all that is known of that end; without it the report tells of ``failures`` alone.
    """

    def __init__(
        self,
        name: str,
        failures: Mapping[int, ProcessFailure],
        reason: str = "",
        verdict: JobVerdict | None = None,
    ) -> None:
        if not failures:
            raise ValueError("ChildFailedError needs at least one failure")
        self.name = name
        self.failures = dict(failures)
        self.reason = reason
        self.verdict = verdict
        super().__init__(self.format_msg())

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.name, self.failures, self.reason, self.verdict)

    def get_first_failure(self) -> tuple[int, ProcessFailure]:
        """Return ``(global rank, failure)`` of the root cause.

        That is the recorded one, if there is a verdict; else the earliest that is not the mere victim of another.
        """
        recorded = self.verdict.first_cause if self.verdict is not None else None
        if recorded is not None and recorded.rank in self.failures:
            return recorded.rank, self.failures[recorded.rank]
        rank = min(self.failures, key=lambda key: _when(key, self.failures[key]))
        return rank, self.failures[rank]

    def format_msg(self) -> str:
        """Return the report: the root cause first, the others after it."""
        verdict = self.verdict
        if verdict is None or verdict.first_cause is None:
            verdict = self._make_verdict()
        return verdict.report(self.name)

    def _make_verdict(self) -> JobVerdict:
        from .verdict import JobState, JobVerdict

        root, _ = self.get_first_failure()
        others = sorted(rank for rank in self.failures if rank != root)
        first, *victims = (_record_of(rank, self.failures[rank]) for rank in (root, *others))
        return JobVerdict("", "", "", JobState.FAILED, first.cause, self.reason, first, tuple(victims))


def _when(rank: int, failure: ProcessFailure) -> tuple[bool, int, int]:
    record = failure.record
    if record is None:
        return False, failure.timestamp * 1_000_000_000, rank
    return record.cause is Cause.BROKEN_COLLECTIVE, record.timestamp_ns, rank


def _record_of(rank: int, failure: ProcessFailure) -> FailureRecord:
    if failure.record is not None:
        return evolve(failure.record, message=failure.message)
    ended = Cause.SIGNAL if failure.exitcode < 0 else Cause.EXIT_CODE
    cause = Cause.EXCEPTION if failure.error_file_data and ended is Cause.EXIT_CODE else ended
    return FailureRecord(
        rank,
        failure.local_rank,
        failure.pid,
        failure.exitcode,
        cause,
        failure.message,
        failure.timestamp * 1_000_000_000,
        failure.error_file,
        failure.error_file_data or None,
    )
