"""``LocalElasticAgent``: runs one role's worker group on one node.

What does not live here: the run itself (``_runner``), and the decisions in it (``_machine``).
"""

from __future__ import annotations

import json
import os
from typing import Any, final

from attrs import evolve

from ..catalogue import EventSink, PluginKind
from ..clock import monotonic
from ..errors import (
    PluginError,
    PreemptedError,
    QuorateError,
    RendezvousClosedError,
    SignalException,
    UnhealthyNodeError,
    UnknownBackendError,
    UsageError,
    remedy_for,
)
from ..failures import ProcessFailure, copy_error_data
from ..logs_specs import DefaultLogsSpecs, LogsSpecs
from ..notices import warn, write_error
from ..plugins import PluginHost, get_host
from ..records import Event, Verdict
from ..rendezvous import EventDrivenHandler
from ..verdict import JobVerdict
from . import _protocol as protocol
from ._environment import check_visible_devices
from ._guarded_handler import guarded
from ._guarded_logs import guarded_logs
from ._membership import sole_use
from ._preparation import choose_starter
from ._protocol import Phase
from ._reports import Reporter, level_of
from ._runner import Runner
from ._spec import RunResult, RunSettings, Worker, WorkerGroup, WorkerSpec, WorkerState
from ._state import State
from ._verdict import judge

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
        shutdown_timeout: seconds that workers get to stop; ``None``: as the specification says.
        health_check_server: for programs written for TorchElastic: its ``stop()`` is called when the run has ended.
        uninterruptible_state_timeout: accepted for programs that pass it; nothing reads it.
        host: the plugins to use (default: those installed).

    Works in any thread (signals are only handled in the main one), any number of times in one process.

    Raises:
        UnknownBackendError: no plugin offers the start method.
        UsageError: there are fewer visible devices than workers that are to see one each; or ``QUORATE_LOG`` has a
            value that means nothing.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs | None = None,
        start_method: str = "spawn",
        exit_barrier_timeout: float = 300,
        log_line_prefix_template: str | None = None,
        shutdown_timeout: float | None = None,
        health_check_server: Any = None,
        uninterruptible_state_timeout: float | None = None,
        *,
        host: PluginHost | None = None,
    ) -> None:
        if not isinstance(spec, WorkerSpec):
            raise UsageError(f"an agent needs a quorate.WorkerSpec, not {spec!r:.80}")
        self._host = get_host() if host is None else host
        if shutdown_timeout is not None:
            spec = evolve(spec, shutdown_timeout=shutdown_timeout)
        check_visible_devices(spec)
        level_of(os.environ.get("QUORATE_LOG"))
        given, spec = spec, evolve(spec, rdzv_handler=guarded(spec.rdzv_handler))
        self._spec = spec
        self._health_check_server = health_check_server
        self._logs_specs = DefaultLogsSpecs() if logs_specs is None else logs_specs
        guarded_specs = guarded_logs(self._logs_specs)
        self._settings = RunSettings(spec, guarded_specs, start_method, exit_barrier_timeout, log_line_prefix_template)
        self._group = WorkerGroup(given)
        self._restarts_used = 0
        self._started_at: float | None = None
        self._total = 0.0
        self._verdict: JobVerdict | None = None
        # Looked up now, so that a wrong name is reported before anything runs.
        choose_starter(self._host, spec.entrypoint, start_method)
        self._sink = _find_sink(self._host, spec.event_log_handler)

    @property
    def worker_group(self) -> WorkerGroup:
        """The workers as of now."""
        return self._group

    def get_worker_group(self, role: str = "default") -> WorkerGroup:
        """Return the workers as of now; an agent has one role."""
        return self._group

    @property
    def remaining_restarts(self) -> int:
        """The number of restarts that the job has left."""
        return max(0, self._spec.max_restarts - self._restarts_used)

    @property
    def total_execution_time(self) -> float:
        """Seconds since :meth:`run` was called or, once it has returned, its duration."""
        return self._total if self._started_at is None else monotonic() - self._started_at

    def run(self, role: str = "default") -> RunResult:
        """Run until the job ends for this node, and say how.

        After the job has ended it may be called again, for another job of the same name.

        Raises:
            UsageError: another agent of this process uses the same rendezvous handler.
            SignalException: the agent was signalled; the workers got their grace and are gone.
            RendezvousTimeoutError, RendezvousConnectionError, RendezvousStateError: the rendezvous cannot go on.
            RendezvousClosedError: the job had failed or been stopped before this node got in.
            PreemptedError: the scheduler ends the job, or takes this node.
            UnhealthyNodeError: a check found this node unhealthy, the restart policy excluded it, or a limit of the
                system keeps an agent from running here.
        """
        with sole_use(self._spec.rdzv_handler):
            return self._run()

    def _run(self) -> RunResult:
        self._started_at, self._restarts_used = monotonic(), 0
        reporter = Reporter(self._host, self._sink, os.urandom(16).hex())
        runner = Runner(self._settings, self._host, reporter, lambda state: self._note(state, reporter))
        try:
            finish = runner.run()
        except (OSError, RuntimeError) as error:
            remedy = remedy_for(error)
            if not remedy:
                raise
            problem = getattr(error, "strerror", None) or str(error)
            raise UnhealthyNodeError(f"no agent can run on this node: {problem}; {remedy}") from error
        finally:
            self._total = monotonic() - self._started_at
            self._started_at = None
            if self._health_check_server is not None:
                self._health_check_server.stop()
            if isinstance(self._logs_specs, DefaultLogsSpecs):
                self._logs_specs.remove_if_unused()
        if isinstance(self._spec.rdzv_handler, EventDrivenHandler):
            self._spec.rdzv_handler.end_run()
        self._verdict = self._judge(runner.state, reporter)
        try:
            return self._result(runner.state, finish, dict(runner.return_values))
        except QuorateError as error:
            error.verdict = self._verdict
            raise

    def _judge(self, state: State, reporter: Reporter) -> JobVerdict:
        """Form the job's verdict and write it to the folder of the run's logs; a disk error is only reported."""
        run_id = self._spec.rdzv_handler.get_run_id()
        verdict = judge(state, run_id, reporter.node_id, self._spec.cluster, reporter.live_rounds)
        folder = None
        try:
            folder = self._settings.logs_specs.keep_run_dir(run_id)
            if folder is not None:
                verdict.write(folder)
        except (OSError, UsageError, PluginError) as error:
            where = "" if folder is None else f" into {folder}"
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            reporter.say(1, f"warning: the verdict could not be written{where}: {why}")
        return verdict

    @property
    def verdict(self) -> JobVerdict | None:
        """Why the last :meth:`run` ended, whichever way it did; ``None`` before the first."""
        return self._verdict

    def _note(self, state: State, reporter: Reporter) -> None:
        group, assignment = self._group, state.assignment
        group.state = _WORKER_STATES.get(state.phase, group.state)
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
            worker.id = reporter.pids.get(worker.local_rank)

    def _result(self, state: State, finish: protocol.Finish, values: dict[int, object]) -> RunResult:
        outcome, end = finish.outcome, finish.end
        if outcome is protocol.Outcome.SIGNAL:
            assert state.signal_number is not None
            raise SignalException(finish.reason, state.signal_number)
        if outcome is protocol.Outcome.PREEMPTED:
            is_first = state.assignment is not None and state.assignment.group_rank == 0
            raise PreemptedError(
                finish.reason, is_first=is_first, signal_number=0 if end is None else end.signal_number
            )
        if outcome is protocol.Outcome.ERROR:
            assert state.trouble is not None
            raise state.trouble.kind.error(state.trouble.problem)
        if outcome is protocol.Outcome.UNHEALTHY:
            raise UnhealthyNodeError(f"this node does not take part: {finish.reason}")
        if outcome is protocol.Outcome.SUCCEEDED:
            self._group.state = WorkerState.SUCCEEDED
            result = RunResult(WorkerState.SUCCEEDED, values, reason=finish.reason, verdict=self._verdict)
            result.others_unknown = isinstance(finish.why, protocol.RendezvousIsLost)
            if result.others_unknown:
                warn(finish.reason)
            return result
        assert end is not None
        if outcome is protocol.Outcome.CLOSED and end.verdict is Verdict.SUCCEEDED:
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
    try:
        sink: EventSink = host.choose(PluginKind.EVENT_SINK, name)
    except UnknownBackendError as error:  # plugins do not know the two names above
        raise UnknownBackendError(error.kind, name, sorted([*error.known, "null", "console"]), error.remedy) from None
    return sink


def _to_console(event: Event) -> None:
    line = {
        "name": str(event.name),
        "reason": event.reason,
        "timestamp_ns": event.timestamp_ns,
        "details": dict(event.details),
    }
    write_error(json.dumps(line, default=str))
