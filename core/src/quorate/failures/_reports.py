"""What is reported of failed workers: ``ProcessFailure`` and ``ChildFailedError``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, final

from attrs import evolve

from ..clock import wall_seconds
from ..diagnosis import cause_of_exit, describe_exit, extra_of, message_of, signal_name
from ..records import Cause, FailureRecord
from ..verdict import JobState, JobVerdict
from ._error_file import read_error_file

#: What TorchElastic's programs find where a worker has left no error file.
_NO_ERROR_FILE = "<N/A>"
_NO_ERROR_DATA: Mapping[str, Any] = {"message": "<NONE>"}


#: The end of the year 9999, which is the last that can be printed, less a day for the time zone.
_LAST_SECOND = 253_402_214_400


@final
class ProcessFailure:
    """One failed worker.

    Arguments:
        local_rank: its rank on its node.
        pid: its process id there.
        exitcode: its exit code, negative for a signal.
        error_file: where it may have written its error (read at once).

    Attributes:
        error_file: the error file, ``"<N/A>"`` without one.
        error_file_data: the JSON object of the error file, ``{"message": "<NONE>"}`` without one.
        has_error_data: whether the worker has left an error file that can be read.
        message: the recorded message, or one made from the exit code and the last lines of stderr.
        timestamp: seconds since the epoch, from the error file or the time of exit.
        record: everything that is known (:class:`quorate.records.FailureRecord`), where quorate made the failure.
    """

    def __init__(
        self, local_rank: int, pid: int, exitcode: int, error_file: str, record: FailureRecord | None = None
    ) -> None:
        self.local_rank, self.pid, self.exitcode = local_rank, pid, exitcode
        self.record = record
        data = record.error_data if record is not None else read_error_file(error_file)
        self.has_error_data = bool(data)
        self.error_file_data: dict[str, Any] = dict(data or _NO_ERROR_DATA)
        self.error_file = error_file if data or os.path.isfile(error_file) else _NO_ERROR_FILE
        self.message, self.timestamp = self._explain()

    def _explain(self) -> tuple[str, int]:
        timestamp = self.record.timestamp_ns // 1_000_000_000 if self.record else _mtime(self.error_file)
        data = self.error_file_data
        try:
            recorded_at = int(extra_of(data).get("timestamp", data.get("timestamp", timestamp)))
            if 0 <= recorded_at <= _LAST_SECOND:
                timestamp = recorded_at
        except (TypeError, ValueError, OverflowError):
            pass  # the time of the file is good enough
        recorded = message_of(data) if self.has_error_data else None
        if recorded is not None:
            return recorded, timestamp
        if self.record is not None and self.record.message:
            return self.record.message, timestamp
        if self.exitcode < 0:
            return describe_exit(self.exitcode, self.pid), timestamp
        return (
            f"exited with code {self.exitcode} and left no error file; decorate the entrypoint with @record",
            timestamp,
        )

    def signal_name(self) -> str:
        """Return the name of the signal that ended it, ``"<N/A>"`` if none did."""
        return signal_name(self.exitcode)

    def timestamp_isoformat(self) -> str:
        """Return the time in local ISO form."""
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


def _mtime(path: str) -> int:
    try:
        return int(os.path.getmtime(path))
    except OSError:
        return wall_seconds()


@final
class ChildFailedError(Exception):
    """Workers failed and no restarts were left.

    Arguments:
        name: the entrypoint.
        failures: global rank -> failure, at least one.
        reason: the sentence that was recorded as the job's end.
        verdict: all that is known of that end; without it the report has ``failures`` alone.
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
    return FailureRecord(
        rank,
        failure.local_rank,
        failure.pid,
        failure.exitcode,
        cause_of_exit(failure.exitcode, failure.error_file_data if failure.has_error_data else {}),
        failure.message,
        failure.timestamp * 1_000_000_000,
        failure.error_file if failure.error_file != _NO_ERROR_FILE else "",
        failure.error_file_data if failure.has_error_data else None,
    )
