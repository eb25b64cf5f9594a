"""Finds out why a worker ended and asks the policies what to do about it.

What does not live here: what follows from their answers (the machine), and the policies themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from attrs import evolve

from ..catalogue import PluginKind
from ..failures import message_from_stderr, read_error_file, signal_name
from ..net import host_name
from ..records import Assignment, Cause, FailureRecord, RestartBudget, RestartDecision, WorkerExited
from ._protocol import Diagnose, Diagnosed

if TYPE_CHECKING:
    from ..plugins import PluginHost
    from ._reports import Reporter

__all__ = ["Diagnosis"]

_LONGEST_LAST_WORDS = 500


@final
class Diagnosis:
    """The failures of one run's workers.  Used on the agent's thread."""

    def __init__(self, host: PluginHost, reporter: Reporter, warn: Callable[[str], None]) -> None:
        self._host, self._reporter, self._warn = host, reporter, warn
        self._to_complete: list[FailureRecord] = []

    @staticmethod
    def get_ready() -> None:
        """Load what a first failure needs."""
        import json  # noqa: F401 - for error files

        from .. import policy  # noqa: F401 - for the decision

    def diagnose(self, command: Diagnose, assignment: Assignment) -> Diagnosed:
        """Return what is known of the failure and, where the command has a budget, what to do about it."""
        failure = self._failure_record(command, assignment)
        cause = self._host.decide_or(failure.cause, "cause", failure)
        failure = evolve(failure, cause=cause)
        decision = None if command.budget is None else self.decide(failure, command.budget)
        self._reporter.failed(failure)
        self._to_complete.append(failure)
        return Diagnosed(failure, decision)

    def decide(self, failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
        """Ask the restart policy."""
        from ..policy import default_restart

        decision: RestartDecision = self._host.decide_or(default_restart(failure, budget), "restart", failure, budget)
        return decision

    def complete_error_files(self) -> None:
        """Add to the error files what only the agent knows; when the workers are gone, nothing waits for it."""
        failures, self._to_complete = self._to_complete, []
        if not failures:
            return
        try:
            recorder = self._host.choose(PluginKind.ERROR_RECORDER, os.environ.get("QUORATE_ERROR_RECORDER", "file"))
            for failure in failures:
                if failure.error_file and recorder.complete is not None:
                    recorder.complete(failure.error_file, failure)
        except Exception as error:
            self._warn(f"the error files could not be completed: {error or type(error).__name__}")

    def _failure_record(self, command: Diagnose, assignment: Assignment) -> FailureRecord:
        exit = command.exit
        # Workers that were not started have written nothing; what the reporter knows is of the round before.
        error_file = "" if command.start_failed else self._reporter.error_files.get(exit.local_rank, "")
        data = read_error_file(error_file) if error_file and not command.hung else None
        if command.start_failed:
            cause = Cause.START_FAILED
        elif command.hung:
            cause = Cause.HANG
        else:
            cause = Cause.SIGNAL if exit.exit_code < 0 else Cause.EXIT_CODE
        return FailureRecord(
            rank=assignment.first_rank + exit.local_rank,
            local_rank=exit.local_rank,
            pid=exit.pid,
            exit_code=exit.exit_code,
            cause=cause,
            message=_message(exit, data),
            timestamp_ns=exit.timestamp_ns,
            error_file=error_file,
            error_data=data,
            node_id=assignment.node_id,
            host=host_name(),
            role=assignment.role,
            restart_count=assignment.restart_count,
            stderr_tail=tuple(exit.stderr_tail),
        )


def _message(exit: WorkerExited, data: Mapping[str, Any] | None) -> str:
    if data is not None:
        recorded = data["message"]
        return str(recorded.get("message", recorded)) if isinstance(recorded, dict) else str(recorded)
    if exit.problem:
        return exit.problem
    if exit.exit_code < 0:
        return f"Signal {-exit.exit_code} ({signal_name(exit.exit_code)}) received by PID {exit.pid}"
    message = message_from_stderr(exit.stderr_tail)
    if message is not None:
        return message
    last = next((line.strip() for line in reversed(exit.stderr_tail) if line.strip()), "")
    return f"exit code {exit.exit_code}" + (f", last words: {last[:_LONGEST_LAST_WORDS]}" if last else "")
