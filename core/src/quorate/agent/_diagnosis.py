"""Finds out why a worker ended and asks the policies what to do about it.

What does not live here: what follows from their answers (the machine), and the policies themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, final

from attrs import evolve

from .._isolation import described, raise_if_interrupted
from ..catalogue import PluginKind
from ..diagnosis import cause_of_exit, describe_exit, message_of
from ..errors import PluginError
from ..failures import message_from_abort, message_from_stderr, read_error_file
from ..net import host_name
from ..plugins import PluginHost
from ..policy import default_restart
from ..records import Assignment, Cause, FailureRecord, RestartBudget, RestartDecision, WorkerExited
from ..text import plain
from . import _protocol as protocol
from ._reports import Reporter

_LONGEST_LAST_WORDS = 500


@final
class Diagnosis:
    """The failures of one run's workers.  Used on the agent's thread."""

    def __init__(self, host: PluginHost, reporter: Reporter, warn: Callable[[str], None]) -> None:
        self._host, self._reporter, self._warn = host, reporter, warn
        self._to_complete: list[FailureRecord] = []
        self._has_begun = False

    def begin(self) -> None:
        """Tell the error recorders, once, that workers run: one notes the kernel's counters."""
        if self._has_begun:
            return
        self._has_begun = True
        try:
            recorders = self._host.catalogue(PluginKind.ERROR_RECORDER)
        except PluginError as error:
            self._warn(f"no error recorder is used: {error}")
            return
        for name, recorder in recorders.items():
            try:
                if recorder.begin is not None:
                    recorder.begin()
            except BaseException as error:
                raise_if_interrupted(error)
                self._warn(f"error recorder {name!r} could not begin: {described(error)}")

    def diagnose(self, command: protocol.Diagnose, assignment: Assignment) -> protocol.Diagnosed:
        """Return what is known of the failure and, where the command has a budget, what to do about it."""
        failure = self._failure_record(command, assignment)
        cause = self._host.decide_or(failure.cause, "cause", failure)
        failure = evolve(failure, cause=cause)
        decision = None if command.budget is None else self.decide(failure, command.budget)
        self._reporter.failed(failure)
        self._to_complete.append(failure)
        return protocol.Diagnosed(failure, decision)

    def decide(self, failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
        """Ask the restart policy."""
        decision: RestartDecision = self._host.decide_or(default_restart(failure, budget), "restart", failure, budget)
        return decision

    def complete_error_files(self) -> None:
        """Add to the error files what only the agent knows; called when the workers are gone."""
        failures, self._to_complete = self._to_complete, []
        if not failures:
            return
        name = os.environ.get("QUORATE_ERROR_RECORDER", "file")
        try:
            recorder = self._host.choose(PluginKind.ERROR_RECORDER, name)
            for failure in failures:
                if failure.error_file and recorder.complete is not None:
                    recorder.complete(failure.error_file, failure)
        except BaseException as error:
            raise_if_interrupted(error)
            self._warn(f"error recorder {name!r} could not complete the error files: {described(error)}")

    def _failure_record(self, command: protocol.Diagnose, assignment: Assignment) -> FailureRecord:
        exit = command.exit
        # Workers that were not started have written nothing; the reporter's paths are those of the round before.
        error_file = "" if command.start_failed else self._reporter.error_files.get(exit.local_rank, "")
        data = read_error_file(error_file) if error_file and not command.hung else None
        if command.start_failed:
            cause = Cause.START_FAILED
        elif command.hung:
            cause = Cause.HANG
        else:
            cause = cause_of_exit(exit.exit_code)
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
            has_both_streams=exit.has_both_streams,
        )


def _message(exit: WorkerExited, data: Mapping[str, Any] | None) -> str:
    recorded = message_of(data) or exit.problem or message_from_abort(exit.exit_code, exit.stderr_tail)
    if not recorded and exit.exit_code >= 0:
        recorded = message_from_stderr(exit.stderr_tail) or exit.exception
    if recorded:
        return plain(recorded)
    last = next((line.strip() for line in reversed(exit.stderr_tail) if line.strip()), "")
    stream = "its output" if exit.has_both_streams else "stderr"
    return describe_exit(exit.exit_code, exit.pid, plain(last[:_LONGEST_LAST_WORDS]), stream)
