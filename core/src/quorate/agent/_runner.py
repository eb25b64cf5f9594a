"""Carries out the agent machine's commands.  One thread owns everything here; others only post inputs to it."""

from __future__ import annotations

import os
import select
import threading
from _queue import Empty, SimpleQueue  # queue's own, without what else that module brings (0.5 ms of a launch)
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from attrs import evolve

from ..catalogue import PluginKind, StarterRequest
from ..clock import monotonic, wall_time_ns
from ..errors import FailureKind, QuorateError, StartError
from ..logs_specs import LogsSpecs
from ..net import host_name
from ..records import Assignment, NodeRecord, WorkerExited, WorkerLaunch
from ..services import AgentSnapshot
from ._checks import Checks
from ._diagnosis import Diagnosis
from ._environment import build_launches
from ._machine import initial_state, step
from ._membership import Membership, open_membership
from ._preparation import JOIN_MOMENT_SECONDS, RUN_MOMENT_SECONDS, IdleWork, Preparation, choose_starter
from ._protocol import (
    Begin,
    CheckNode,
    Clock,
    Command,
    Decide,
    Decline,
    Diagnose,
    Diagnosed,
    DumpStacks,
    EndRound,
    Finish,
    Grace,
    Input,
    JoinRound,
    Leave,
    NodeUnhealthy,
    RendezvousFailed,
    ReportDone,
    SignalReceived,
    StacksDumped,
    StartFailed,
    StartWorkers,
    State,
    StopWorkers,
    WorkerHung,
    WorkersExited,
    WorkersGone,
)
from ._reports import Reporter
from ._roster import Roster
from ._services import Services, View
from ._signals import SignalCatcher
from ._spec import WorkerSpec

if TYPE_CHECKING:
    from ..plugins import PluginHost
    from ..starter import ProcessContext, Starter

__all__ = ["Runner"]

#: Beyond the grace: what the starter needs to kill, sweep and drain, even from an uninterruptible wait.
_LAST_RESORT_SECONDS = 10.0


@final
class Runner:
    """One run of one agent.

    Arguments:
        spec, logs_specs, start_method, exit_barrier_timeout, prefix_template: as for ``LocalElasticAgent``.
        host: the installed plugins.
        reporter: told of everything that happens.
        on_state: called after each step with the new state.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        start_method: str,
        exit_barrier_timeout: float,
        prefix_template: str | None,
        host: PluginHost,
        reporter: Reporter,
        on_state: Callable[[State], None],
    ) -> None:
        self._spec, self._logs_specs, self._prefix_template = spec, logs_specs, prefix_template
        self._host, self._reporter, self._on_state = host, reporter, on_state
        grace = Grace(
            *(spec.grace.get(key, spec.shutdown_timeout) for key in ("restart", "rescale", "preemption", "exit"))
        )
        self.state = initial_state(
            spec.max_restarts,
            exit_barrier_timeout,
            grace,
            host=host_name(),
            loss_timeout=spec.rdzv_handler.loss_timeout,
        )
        self.return_values: dict[int, Any] = {}
        self._run_id = spec.rdzv_handler.get_run_id()
        self._node_id = reporter.node_id
        self._roster = Roster()
        self._starter = self._make_starter(start_method)
        self._preparation = Preparation(self._starter)
        self._while_joining = IdleWork(JOIN_MOMENT_SECONDS, (self._begin_recorders, self._let_services_get_ready))
        self._recorders_began = False
        self._signals = SignalCatcher(spec.signals_to_handle)
        self._inbox: SimpleQueue[Input | Callable[[], None]] = SimpleQueue()
        self._view = View(
            spec.settings, self.snapshot, spec.rdzv_handler, self.post, lambda text: reporter.say(1, text)
        )
        self._services: Services | None = None
        self._checks: Checks | None = None
        self._wake = -1
        self._epoll: select.epoll | None = None
        self._membership: Membership | None = None
        self._context: ProcessContext | None = None
        self._stop_deadline: float | None = None
        self._finish: Finish | None = None
        self._diagnosis = Diagnosis(host, reporter, self._warn)
        self._while_running = IdleWork(RUN_MOMENT_SECONDS, (self._diagnosis.get_ready,))

    def _make_starter(self, start_method: str) -> Starter:
        spec = self._spec
        backend = choose_starter(self._host, spec.entrypoint, start_method)
        return backend.create(StarterRequest(backend.name, self._node_id, spec.shutdown_timeout, spec.settings))

    def run(self) -> Finish:
        """Run until the machine finishes.  Whatever happens, no worker is left when this returns or raises."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        try:
            self._signals.install()
            if self._signals.is_installed:
                self._epoll.register(self._signals.fileno(), select.EPOLLIN)
            self._membership = open_membership(self._spec.rdzv_handler, self.post)
            self._open_services()
            self._prepare_starter()
            self._feed(Begin())
            while self._finish is None:
                self._turn()
            return self._finish
        finally:
            if self._membership is not None:
                self._membership.close()
            self._close_context()
            self._preparation.close()
            self._close_services()
            self._signals.restore()
            self._epoll.close()
            wake, self._wake = self._wake, -1
            os.close(wake)

    def _open_services(self) -> None:
        self._services = Services(self._host, self._view, self._warn)
        if self._services:
            self._reporter.listeners.append(self._services.observe)
        checks = list(self._host.catalogue(PluginKind.HEALTH_CHECK).values())
        self._checks = Checks(checks, self._view, lambda: self.post(_look_again), self._spec.health_interval)

    def _prepare_starter(self) -> None:
        assert self._epoll is not None
        self._preparation.begin(self._spec, self._services.environment if self._services is not None else {})
        if self._preparation.descriptor >= 0:
            self._epoll.register(self._preparation.descriptor, select.EPOLLIN)

    def _close_services(self) -> None:
        self._reporter.listeners.clear()
        if self._checks is not None:
            self._checks.close()
        if self._services is not None:
            self._services.close()

    def _warn(self, sentence: str) -> None:
        self._reporter.say(1, f"warning: {sentence}")

    def snapshot(self) -> AgentSnapshot:
        """Return what is known after the last step; from any thread."""
        state, assignment = self.state, self.state.assignment
        ends = state.history if state.end is None else (*state.history, state.end)
        return AgentSnapshot(
            self._run_id,
            self._node_id,
            state.host,
            self._spec.role,
            state.phase.value,
            state.reason,
            state.max_restarts,
            restart_count=assignment.restart_count
            if assignment is not None
            else (ends[-1].restart_count if ends else 0),
            round_number=assignment.round_number if assignment is not None else None,
            group_rank=assignment.group_rank if assignment is not None else None,
            group_world_size=assignment.group_world_size if assignment is not None else None,
            world_size=assignment.world_size if assignment is not None else None,
            workers=self._roster.workers,
            ends=ends,
            log_dir=self._logs_specs.root_log_dir or "",
        )

    def post(self, event: Input | Callable[[], None]) -> None:
        """Hand the agent an input, or a call to make on its thread; from any thread."""
        self._inbox.put(event)
        wake = self._wake
        if wake >= 0:
            try:
                os.eventfd_write(wake, 1)
            except OSError:
                pass  # the run has just ended

    # --- the loop -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(self._timeout()):
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            elif descriptor == self._signals.fileno():
                for number in self._signals.take():
                    self._feed(SignalReceived(number))
            elif descriptor == self._preparation.descriptor:
                self._start_held_back()
        while self._finish is None:
            try:
                event = self._inbox.get_nowait()
            except Empty:
                break
            if callable(event):
                event()
            else:
                self._feed(event)
        self._advance_context()
        self._advance_checks()
        self._while_joining.advance(monotonic())
        self._while_running.advance(monotonic())
        if self._finish is None and self.state.wake_at is not None and self.state.wake_at <= monotonic():
            self._feed(Clock(due=True))

    def _start_held_back(self) -> None:
        assignment = self._preparation.take_ready()
        answer = None if assignment is None else self._start(assignment)
        if answer is not None:
            self._feed(answer)

    def _timeout(self) -> float | None:
        times = [self.state.wake_at, self._while_joining.wake_at(), self._while_running.wake_at()]
        if self._context is not None:
            times += [self._context.wake_at(), self._stop_deadline]
        if self._checks is not None:
            times.append(self._checks.wake_at())
        due = [time for time in times if time is not None]
        return max(0.0, min(due) - monotonic()) if due else None

    def _advance_context(self) -> None:
        context = self._context
        if context is None or self._finish is not None:
            return
        exits = context.advance(monotonic())
        if exits:
            for exit in exits:
                if exit.exit_code == 0 and self.state.assignment is not None:
                    self.return_values[self.state.assignment.first_rank + exit.local_rank] = exit.return_value
            self._roster.ended(exits)
            self._feed(WorkersExited(tuple(exits)))
        if self._stop_deadline is None or self._context is not context:
            return
        if context.is_gone() or monotonic() >= self._stop_deadline:
            problem = self._close_context()  # which kills whatever a stalled console or a wait in the kernel has left
            if problem:
                self._feed(NodeUnhealthy(problem))
            self._feed(WorkersGone())

    def _advance_checks(self) -> None:
        if self._checks is not None and self._finish is None:
            found = self._checks.advance(monotonic())
            if found is not None:
                self._feed(found)

    def _feed(self, event: Input) -> None:
        if isinstance(event, WorkerHung) and not self._roster.is_running(event.local_rank, event.pid):
            return  # it was about a worker of an earlier round
        backlog: deque[Input] = deque([event])
        while backlog and self._finish is None:
            result = step(self.state, backlog.popleft(), monotonic())
            old, self.state = self.state, result.state
            self._reporter.changed(old, result.state)
            self._on_state(result.state)
            for command in result.commands:
                answer = self._execute(command)
                if answer is not None:
                    backlog.append(answer)

    # --- commands -------------------------------------------------------------------------------------------------

    def _execute(self, command: Command) -> Input | None:
        assert self._membership is not None
        if isinstance(command, Finish):
            self._finish = command
        elif isinstance(command, StartWorkers):
            return None if self._preparation.holds_back(command.assignment) else self._start(command.assignment)
        elif isinstance(command, CheckNode):
            assert self._checks is not None
            return self._checks.begin()
        elif isinstance(command, DumpStacks):
            return self._dump_stacks(command.local_rank)
        elif isinstance(command, StopWorkers):
            return self._stop(command)
        elif isinstance(command, Diagnose):
            assert self.state.assignment is not None
            return self._diagnosis.diagnose(command, self.state.assignment)
        elif isinstance(command, Decide):
            return Diagnosed(command.failure, self._diagnosis.decide(command.failure, command.budget))
        else:
            try:
                self._tell_membership(self._membership, command)
            except Exception as error:
                return RendezvousFailed(FailureKind.of(error), str(error) or type(error).__name__)
        return None

    def _tell_membership(self, membership: Membership, command: Command) -> None:
        if isinstance(command, JoinRound):
            self.return_values.clear()
            membership.join(self._node_record())
            self._while_joining.begin(monotonic())
        elif isinstance(command, EndRound):
            membership.end_round(command.end)
        elif isinstance(command, ReportDone):
            membership.report_done()
        elif isinstance(command, Leave):
            membership.leave()
        elif isinstance(command, Decline):
            membership.decline(evolve(self._node_record(), declined=command.problem))

    def _node_record(self) -> NodeRecord:
        return NodeRecord(
            self._node_id,
            self._spec.role,
            self._spec.local_world_size,
            host=host_name(),
            address=self._spec.local_addr or "127.0.0.1",
            rank_hint=self._spec.node_rank,
        )

    def _start(self, assignment: Assignment) -> Input | None:
        self._stop_deadline = None
        self._while_joining.cancel()
        try:
            launches = build_launches(
                self._spec,
                assignment,
                self._logs_specs,
                self._run_id,
                self._prefix_template,
                self._change_launch,
                self._services.environment if self._services is not None else {},
            )
            self._context = self._starter.start(launches)
        except Exception as error:
            local_rank = error.local_rank if isinstance(error, StartError) else 0
            text = str(error) if isinstance(error, QuorateError) else f"{type(error).__name__}: {error}"
            return StartFailed(WorkerExited(local_rank, 0, 127, wall_time_ns(), problem=text))
        assert self._epoll is not None
        self._epoll.register(self._context.fileno(), select.EPOLLIN)
        pids = self._context.pids()
        self._roster.started(launches, pids)
        self._reporter.started(pids, launches)
        self._begin_recorders()
        self._while_running.begin(monotonic())
        return None

    def _begin_recorders(self) -> None:
        """Tell error recorders, once, that workers run: one compares the kernel's counters with what they are now."""
        if self._recorders_began:
            return
        self._recorders_began = True
        try:
            for recorder in self._host.catalogue(PluginKind.ERROR_RECORDER).values():
                if recorder.begin is not None:
                    recorder.begin()
        except Exception as error:
            self._warn(f"an error recorder could not begin: {error or type(error).__name__}")

    def _let_services_get_ready(self) -> None:
        if self._services is not None:
            self._services.get_ready()

    def _dump_stacks(self, hung_local_rank: int) -> Input | None:
        write_stacks = getattr(self._context, "dump_stacks", None)  # the ability StackDumper
        if write_stacks is None:
            return StacksDumped()

        def dump() -> None:
            lines: tuple[str, ...] = ()
            try:
                lines = tuple(write_stacks(hung_local_rank, self.state.dump_timeout))
            except Exception as error:
                self._warn(f"the workers' stacks could not be dumped: {error or type(error).__name__}")
            self.post(StacksDumped(lines))

        threading.Thread(target=dump, name="quorate-stacks", daemon=True).start()
        return None

    def _change_launch(self, launch: WorkerLaunch, assignment: Assignment) -> WorkerLaunch:
        changed = self._host.decide("launch", launch, assignment)
        return launch if changed is None else changed

    def _stop(self, command: StopWorkers) -> Input | None:
        self._preparation.cancel()
        self._while_running.cancel()
        now = monotonic()
        deadline = now + command.grace_seconds + _LAST_RESORT_SECONDS
        if self._stop_deadline is None or command.grace_seconds == 0.0:
            self._stop_deadline = deadline
        else:
            self._stop_deadline = max(self._stop_deadline, deadline)
        if self._context is None:
            return WorkersGone()
        self._context.stop(command.signal_number, command.grace_seconds, now)
        if self._context.is_gone():
            problem = self._close_context()
            if problem:
                self.post(NodeUnhealthy(problem))
            return WorkersGone()
        return None

    def _close_context(self) -> str:
        """Close it; return what speaks against another round on this node, ``""`` if nothing does."""
        context, self._context = self._context, None
        if context is None:
            return ""
        assert self._epoll is not None
        try:
            self._epoll.unregister(context.fileno())
        except (OSError, ValueError):
            pass  # its descriptor is already closed
        context.close()
        self._diagnosis.complete_error_files()
        left_behind = getattr(context, "left_behind", None)  # the ability LeavesBehind
        return "" if left_behind is None else "; ".join(left_behind())


def _look_again() -> None:
    """Wake the agent's thread: each of its turns looks at what the checks have found."""
