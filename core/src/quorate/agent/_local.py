"""``LocalElasticAgent``: runs one role's worker group on one node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, final

from ..catalogue import EventSink, PluginKind
from ..clock import monotonic
from ..errors import (
    QuorateError,
    RendezvousClosedError,
    SignalException,
    UnhealthyNodeError,
    UsageError,
)
from ..failures import ProcessFailure, copy_error_data
from ..logs_specs import DefaultLogsSpecs, LogsSpecs
from ..records import Event, Verdict
from ._protocol import Finish, Outcome, Phase, State
from ._spec import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState

if TYPE_CHECKING:
    from ..plugins import PluginHost
    from ..verdict import JobVerdict
    from ._reports import Reporter

__all__ = ["LocalElasticAgent"]

_WORKER_STATES = {
    Phase.NEW: WorkerState.INIT,
    Phase.CHECKING: WorkerState.INIT,
    Phase.JOINING: WorkerState.INIT,
    Phase.RUNNING: WorkerState.HEALTHY,
    Phase.BARRIER: WorkerState.SUCCEEDED,
    Phase.STOPPING: WorkerState.STOPPED,
}


@final
class LocalElasticAgent:
    """Runs the workers of ``spec`` on this node and keeps them running as the job's rounds come and go.

    Arguments:
        spec: the worker group.
        logs_specs: where its output goes.
        start_method: how function entrypoints are started (``spawn``, ``fork``, ``forkserver``, or a plugin's);
            commands too, if it takes them (``warm``), else those are started by ``exec``.
        exit_barrier_timeout: seconds to wait, after this node's workers have succeeded, for the other nodes.
        log_line_prefix_template: put before each console line of a worker (see ``docs/logs.md``).
        host: the plugins to use (default: those installed).

    Works in any thread (signals are only handled in the main one), any number of times in one process.

    Raises:
        UnknownBackendError: no plugin offers the start method.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs | None = None,
        start_method: str = "spawn",
        exit_barrier_timeout: float = 300,
        log_line_prefix_template: str | None = None,
        *,
        host: PluginHost | None = None,
    ) -> None:
        if host is None:
            from ..plugins import get_host

            host = get_host()
        self._spec = spec
        self._logs_specs = logs_specs if logs_specs is not None else DefaultLogsSpecs()
        self._start_method = start_method
        self._exit_barrier_timeout = float(exit_barrier_timeout)
        self._prefix_template = log_line_prefix_template
        self._host = host
        self._group = WorkerGroup(spec)
        self._restarts_used = 0
        self._started_at: float | None = None
        self._total = 0.0
        self._verdict: JobVerdict | None = None
        from ._preparation import choose_starter

        # Asked for now, so that a wrong name is reported before anything runs.
        choose_starter(host, spec.entrypoint, start_method)
        self._sink = _find_sink(host, spec.event_log_handler)

    @property
    def worker_group(self) -> WorkerGroup:
        """The workers as of now."""
        return self._group

    def get_worker_group(self, role: str = "default") -> WorkerGroup:
        """Return the workers as of now; an agent has one role."""
        return self._group

    @property
    def remaining_restarts(self) -> int:
        """How many restarts the job has left."""
        return max(0, self._spec.max_restarts - self._restarts_used)

    @property
    def total_execution_time(self) -> float:
        """Seconds since :meth:`run` was called, or that it took."""
        return self._total if self._started_at is None else monotonic() - self._started_at

    def run(self, role: str = "default") -> RunResult:
        """Run until the job ends for this node, and say how.

        Raises:
            SignalException: the agent was signalled; the workers got their grace and are gone.
            RendezvousTimeoutError, RendezvousConnectionError, RendezvousStateError: the rendezvous cannot go on.
            RendezvousClosedError: the job had failed or been stopped before this node got in.
            UnhealthyNodeError: a check found this node declined, or the restart policy excluded it.
        """
        from ._reports import Reporter
        from ._runner import Runner

        self._started_at = monotonic()
        reporter = Reporter(self._host, self._sink, os.urandom(16).hex())
        runner = Runner(
            self._spec,
            self._logs_specs,
            self._start_method,
            self._exit_barrier_timeout,
            self._prefix_template,
            self._host,
            reporter,
            lambda state: self._note(state, reporter),
        )
        try:
            finish = runner.run()
        finally:
            self._total = monotonic() - self._started_at
            self._started_at = None
            if isinstance(self._logs_specs, DefaultLogsSpecs):
                self._logs_specs.remove_if_unused()
        self._verdict = self._judge(runner.state, finish, reporter)
        try:
            return self._result(runner.state, finish, dict(runner.return_values))
        except QuorateError as error:
            error.verdict = self._verdict
            raise

    def _judge(self, state: State, finish: Finish, reporter: Reporter) -> JobVerdict:
        """Form the job's verdict, and keep it where the run's logs are kept; never fails for want of a disk."""
        from ._judging import judge

        run_id = self._spec.rdzv_handler.get_run_id()
        verdict = judge(state, finish, run_id, reporter.node_id)
        try:
            folder = self._logs_specs.keep_run_dir(run_id)
            if folder is not None:
                verdict.write(folder)
        except (OSError, UsageError) as error:
            reporter.say(1, f"warning: the verdict could not be written: {error}")
        return verdict

    @property
    def verdict(self) -> JobVerdict | None:
        """Why the last :meth:`run` ended, whichever way it did; ``None`` before the first."""
        return self._verdict

    def _note(self, state: State, reporter: object) -> None:
        group, assignment = self._group, state.assignment
        group.state = _WORKER_STATES.get(state.phase, group.state)
        pids = getattr(reporter, "pids", {})
        if assignment is None:
            return
        if group.round_number != assignment.round_number or state.phase is Phase.RUNNING:
            group.round_number, group.restart_count = assignment.round_number, assignment.restart_count
            group.group_rank, group.group_world_size = assignment.group_rank, assignment.group_world_size
            group.master_addr = self._spec.master_addr or assignment.master_addr
            group.master_port = self._spec.master_port or assignment.master_port
            self._restarts_used = assignment.restart_count
            group.workers = [
                Worker(
                    local_rank,
                    assignment.first_rank + local_rank,
                    assignment.first_role_rank + local_rank,
                    assignment.world_size,
                    assignment.role_world_size,
                )
                for local_rank in range(assignment.local_world_size)
            ]
        for worker in group.workers:
            worker.id = pids.get(worker.local_rank)

    def _result(self, state: State, finish: Finish, values: dict[int, object]) -> RunResult:
        outcome, end = finish.outcome, state.end
        if outcome is Outcome.SIGNAL:
            assert state.signal_number is not None
            raise SignalException(finish.reason, state.signal_number)
        if outcome is Outcome.ERROR:
            assert state.trouble is not None
            raise state.trouble.kind.error(state.trouble.problem)
        if outcome is Outcome.UNHEALTHY:
            raise UnhealthyNodeError(f"this node does not take part: {finish.reason}")
        if outcome is Outcome.SUCCEEDED:
            self._group.state = WorkerState.SUCCEEDED
            return RunResult(WorkerState.SUCCEEDED, values, reason=finish.reason, verdict=self._verdict)
        assert end is not None
        if outcome is Outcome.CLOSED and end.verdict is Verdict.SUCCEEDED:
            self._group.state = WorkerState.SUCCEEDED
            return RunResult(WorkerState.SUCCEEDED, reason=finish.reason, verdict=self._verdict)
        self._group.state = WorkerState.FAILED
        failures = {failure.rank: ProcessFailure.from_record(failure) for failure in state.failures}
        if end.failure is not None:
            failures.setdefault(end.failure.rank, ProcessFailure.from_record(end.failure))
        if not failures:
            raise RendezvousClosedError(end.reason)
        root = end.failure
        if root is not None and root.error_data:
            copy_error_data(root.error_data, os.environ.get("TORCHELASTIC_ERROR_FILE"))
        return RunResult(WorkerState.FAILED, {}, failures, end.reason, self._verdict)


def _find_sink(host: PluginHost, name: str) -> EventSink | None:
    if name in ("", "null"):
        return None
    if name == "console":
        return EventSink("console", "one JSON line per event on stderr", _to_console)
    sink: EventSink = host.choose(PluginKind.EVENT_SINK, name)
    return sink


def _to_console(event: Event) -> None:
    import json
    import sys

    line = {
        "name": event.name,
        "reason": event.reason,
        "timestamp_ns": event.timestamp_ns,
        "details": dict(event.details),
    }
    sys.stderr.write(json.dumps(line, default=str) + "\n")
