"""Carries out the agent machine's commands.  One thread owns everything here; other threads only post inputs to it.

What does not live here: decisions (:mod:`quorate.agent._machine`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, final

from attrs import evolve

from .._isolation import call_plugin, described, problem_of, raise_if_interrupted
from ..catalogue import PluginKind, StarterRequest
from ..clock import monotonic, seconds_until, wall_time_ns
from ..errors import FailureKind, PluginError, StartError
from ..net import host_name
from ..plugins import PluginHost
from ..preemption import DEADLINE_VARIABLE
from ..records import Assignment, WorkerExited, WorkerLaunch
from ..services import AgentSnapshot
from ..starter import Starter
from ..timeouts import RELEASE_TIMEOUT_SECONDS, parse_seconds
from . import _protocol as protocol
from ._checks import Checks
from ._closing import close_in_turn, raise_if_closed_by_others
from ._console import ConsoleCheck
from ._diagnosis import Diagnosis
from ._environment import build_launches
from ._guarded_context import GuardedContext
from ._idle import IdleWork
from ._machine import step
from ._membership import Membership, open_membership
from ._node_record import node_record
from ._preemption import Preemption
from ._preparation import Preparation, choose_starter
from ._probe import probe_master
from ._processes import Processes
from ._reports import Reporter
from ._services import Services, View, take_snapshot
from ._signals import Caught, SignalCatcher
from ._spec import RunSettings
from ._state import Settings, State
from ._workers import WorkerTable


@final
class Runner:
    """One run of one agent.

    Arguments:
        settings: the workers and how they are run.
        host: the installed plugins.
        reporter: receives everything that happens.
        on_state: called after each step with the new state.
    """

    def __init__(
        self, settings: RunSettings, host: PluginHost, reporter: Reporter, on_state: Callable[[State], None]
    ) -> None:
        spec = settings.spec
        self._settings, self._spec = settings, spec
        self._host, self._reporter, self._on_state = host, reporter, on_state
        release_timeout = spec.settings.get("release_timeout", RELEASE_TIMEOUT_SECONDS)
        self.state = State(
            Settings(
                spec.max_restarts,
                settings.exit_barrier_timeout,
                spec.grace_periods(),
                loss_timeout=spec.rdzv_handler.loss_timeout,
                when_cut_off=spec.rdzv_handler.when_cut_off,
                release_timeout=parse_seconds("release_timeout", release_timeout),
                host=host_name(),
            )
        )
        self.return_values: dict[int, Any] = {}
        self._run_id = spec.rdzv_handler.get_run_id()
        self._node_id = reporter.node_id
        self._workers = WorkerTable()
        self._start_method, self._starter = self._make_starter()
        self._preparation = Preparation(self._start_method, self._starter)
        self._preemption = Preemption(spec.cluster, self.post)
        self._signals = SignalCatcher(spec.signals_to_handle, spec.forward_signals, self._preemption.signals)
        self._inbox: SimpleQueue[protocol.Input | Callable[[], None]] = SimpleQueue()
        self._view = View(
            spec.settings,
            self.snapshot,
            spec.rdzv_handler,
            self.post,
            lambda text: reporter.say(1, text),
            0 if spec.cluster is None else spec.cluster.min_nodes or 0,
        )
        self._services = Services(self._view, self._warn)
        self._idle = IdleWork(self._services.get_ready)
        self._checks: Checks | None = None
        self._wake = -1
        self._epoll: select.epoll | None = None
        self._membership: Membership | None = None
        self._processes = Processes(self._watch, self._unwatch, self._warn)
        self._finish: protocol.Finish | None = None
        self._diagnosis = Diagnosis(host, reporter, self._warn)
        self._console = ConsoleCheck(settings, self._warn)

    def _make_starter(self) -> tuple[str, Starter]:
        spec = self._spec
        backend = choose_starter(self._host, spec.entrypoint, self._settings.start_method)
        request = StarterRequest(
            backend.name, self._node_id, spec.shutdown_timeout, spec.settings, spec.rdzv_handler.loss_timeout
        )
        return backend.name, call_plugin(f"start method {backend.name!r}", backend.create, request)

    def run(self) -> protocol.Finish:
        """Run until the machine finishes.  Whatever happens, no worker is left when this returns or raises."""
        self._epoll = select.epoll()  # first: where no descriptor is left for the next one, it closes itself
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        try:
            self._signals.install()
            if self._signals.is_installed:
                self._epoll.register(self._signals.fileno(), select.EPOLLIN)
            self._membership = open_membership(self._spec.rdzv_handler, self.post)
            self._open_services()
            if self._spec.cluster is not None:
                self._reporter.found(self._spec.cluster)
                self._preemption.begin()
            self._prepare_starter()
            self._feed(protocol.Begin())
            while self._finish is None:
                self._wait_and_handle()
            return self._finish
        except OSError as error:
            raise_if_closed_by_others(error, self._epoll)
            raise
        finally:
            parts = (
                self._close_membership,
                self._processes.close,
                self._diagnosis.complete_error_files,
                self._preparation.close,
                self._close_services,
                self._preemption.close,
                self._close_signals,
                self._close_descriptors,
            )
            close_in_turn(parts, self._warn)

    def _close_membership(self) -> None:
        if self._membership is not None:
            self._membership.close()

    def _close_signals(self) -> None:
        if self._finish is not None and self._finish.outcome is protocol.Outcome.PREEMPTED:
            self._signals.outlast()
        self._signals.restore()

    def _close_descriptors(self) -> None:
        assert self._epoll is not None
        self._epoll.close()
        wake, self._wake = self._wake, -1
        os.close(wake)

    def _open_services(self) -> None:
        self._services.start(self._host)
        if self._services:
            self._reporter.listeners.append(self._services.observe)
        checks = list(self._host.catalogue(PluginKind.HEALTH_CHECK).values())
        self._checks = Checks(checks, self._view, lambda: self.post(_look_again), self._spec.health_interval)

    def _prepare_starter(self) -> None:
        assert self._epoll is not None
        self._preparation.begin(self._spec, self._worker_defaults())
        if self._preparation.descriptor >= 0:
            self._epoll.register(self._preparation.descriptor, select.EPOLLIN)

    def _close_services(self) -> None:
        self._reporter.listeners.clear()
        if self._checks is not None:
            self._checks.close()
        self._services.close()

    def _warn(self, sentence: str) -> None:
        self._reporter.say(1, f"warning: {sentence}")

    def snapshot(self) -> AgentSnapshot:
        """Return what is known after the last step; from any thread."""
        return take_snapshot(self.state, self._settings, self._node_id, self._workers.workers)

    def post(self, event: protocol.Input | Callable[[], None]) -> None:
        """Hand the agent an input, or a call to make on its thread; from any thread."""
        self._inbox.put(event)
        wake = self._wake
        if wake >= 0:
            with suppress(OSError):  # the run has just ended
                os.eventfd_write(wake, 1)

    # --- the loop -------------------------------------------------------------------------------------------------

    def _wait_and_handle(self) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(self._timeout()):
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            elif descriptor == self._signals.fileno():
                for caught in self._signals.take():
                    if not self._preemption.takes(caught.number):
                        self._take_signal(caught)
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
        self._advance_processes()
        self._advance_checks()
        self._idle.advance(monotonic())
        if self._finish is None and self.state.wake_at is not None and self.state.wake_at <= monotonic():
            self._feed(protocol.Clock(due=True))

    def _take_signal(self, caught: Caught) -> None:
        number = caught.number
        if number != signal.SIGTSTP and number not in self._signals.forwarded:
            self._feed(protocol.SignalReceived(number, caught.is_person))
            return
        try:
            self._suspend() if number == signal.SIGTSTP else self._forward(number)
        except PluginError as error:
            self._warn(str(error))  # the workers are none the worse for it

    def _suspend(self) -> None:
        """Stop with the workers, as Ctrl-Z stops a program, and go on with them."""
        self._processes.suspend()
        self._signals.suspend()
        if self._spec.rdzv_handler.is_cut_off():
            self._feed(protocol.CutOff("this agent was suspended, and the other nodes may have gone on without it"))
        self._processes.resume()

    def _forward(self, number: int) -> None:
        name = signal.Signals(number).name
        told = self._processes.forward(number)
        running = {worker.local_rank for worker in self._workers.workers if worker.is_working}
        deaf = ", ".join(map(str, sorted(running.difference(told))))
        if told:
            self._reporter.say(2, f"{name} passed on to local rank {', '.join(map(str, told))}")
        if deaf:
            self._reporter.say(1, f"{name} is not passed on to local rank {deaf}, which has no handler for it")
        elif not told:
            self._reporter.say(1, f"{name} received; no worker runs that it could be passed on to")

    def _start_held_back(self) -> None:
        command = self._preparation.take_ready()
        answer = None if command is None else self._start(command)
        if answer is not None:
            self._feed(answer)

    def _timeout(self) -> float | None:
        times = [self.state.wake_at, self._idle.wake_at(), self._processes.wake_at()]
        if self._checks is not None:
            times.append(self._checks.wake_at())
        due = [time for time in times if time is not None]
        return seconds_until(min(due)) if due else None

    def _advance_processes(self) -> None:
        if self._finish is not None:
            return
        exits = self._processes.advance()
        if exits:
            for exit in exits:
                if exit.exit_code == 0 and self.state.assignment is not None:
                    self.return_values[self.state.assignment.first_rank + exit.local_rank] = exit.return_value
            self._workers.ended(exits)
            self._feed(protocol.WorkersExited(tuple(exits)))
        self._workers.delivered(self._processes.delivered())
        gone = self._take_gone(self._feed)
        if gone is not None:
            self._feed(gone)

    def _take_gone(self, report: Callable[[protocol.Input], None]) -> protocol.WorkersGone | None:
        """Return, once, that the workers are gone or released, as the last stop or release asked for."""
        gone = self._processes.take_gone()
        if gone is not None:
            self._diagnosis.complete_error_files()
            self._workers.released(gone.kept)
            problem = self._processes.take_problem()
            if problem:
                report(protocol.NodeUnhealthy(problem))
        return gone

    def _advance_checks(self) -> None:
        if self._checks is not None and self._finish is None:
            found = self._checks.advance(monotonic())
            if found is not None:
                self._feed(found)

    def _feed(self, event: protocol.Input) -> None:
        if isinstance(event, protocol.WorkerHung) and not self._workers.is_running(event.local_rank, event.pid):
            return  # the report is about a worker of an earlier round
        backlog: deque[protocol.Input] = deque([event])
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

    def _execute(self, command: protocol.Command) -> protocol.Input | None:
        assert self._membership is not None
        if isinstance(command, protocol.Finish):
            self._finish = command
        elif isinstance(command, protocol.StartWorkers):
            return None if self._preparation.holds_back(command) else self._start(command)
        elif isinstance(command, protocol.CheckNode):
            assert self._checks is not None
            return self._checks.begin()
        elif isinstance(command, protocol.DumpStacks):
            return self._dump_stacks(command.local_rank)
        elif isinstance(command, (protocol.StopWorkers, protocol.ReleaseWorkers)):
            return self._stop(command)
        elif isinstance(command, protocol.FreezeWorkers):
            problem = self._processes.freeze()
            return protocol.CannotFreeze(problem) if problem else None
        elif isinstance(command, protocol.ThawWorkers):
            self._processes.thaw()
        elif isinstance(command, protocol.AnnounceDeadline):
            self._reporter.preempted(command)
            self._preemption.announce(command, self._warn)
        elif isinstance(command, protocol.Diagnose):
            assert self.state.assignment is not None
            return self._diagnosis.diagnose(command, self.state.assignment)
        elif isinstance(command, protocol.Decide):
            return protocol.Diagnosed(command.failure, self._diagnosis.decide(command.failure, command.budget))
        else:
            try:
                self._send(self._membership, command)
            except BaseException as error:
                raise_if_interrupted(error)
                return protocol.RendezvousFailed(FailureKind.of(error), problem_of(error))
        return None

    def _send(self, membership: Membership, command: protocol.Command) -> None:
        if isinstance(command, protocol.JoinRound):
            self.return_values.clear()
            membership.join(node_record(self._spec, self._node_id))
            self._idle.begin(monotonic())
        elif isinstance(command, protocol.EndRound):
            membership.end_round(command.end)
        elif isinstance(command, protocol.ReportDone):
            membership.report_done()
        elif isinstance(command, protocol.Leave):
            membership.leave()
        elif isinstance(command, protocol.Decline):
            membership.decline(evolve(node_record(self._spec, self._node_id), declined=command.problem))

    def _start(self, command: protocol.StartWorkers) -> protocol.Input | None:
        self._idle.cancel()
        kept = command.kept & frozenset(self._processes.begin())
        self._preemption.prepare()
        try:
            launches = build_launches(
                self._settings, command.assignment, self._run_id, self._change_launch, self._worker_defaults()
            )
            self._console.look(command.assignment, launches)
            launches = self._workers.continued(launches, kept)
            fresh = [launch for launch in launches if launch.local_rank not in kept]
            if fresh:
                self._processes.add(GuardedContext(self._start_method, self._starter.start(fresh)))
            pids = self._processes.pids()
        except BaseException as error:
            raise_if_interrupted(error)
            local_rank = error.local_rank if isinstance(error, StartError) else 0
            text = problem_of(error)
            self._processes.begin()
            return protocol.StartFailed(WorkerExited(local_rank, 0, 127, wall_time_ns(), problem=text))
        self._processes.assign([launch for launch in launches if launch.local_rank in kept])
        self._workers.started(launches, pids, kept)
        self._reporter.started(pids, launches, kept, command.assignment.round_number)
        self._diagnosis.begin()
        probe_master(self._spec, command.assignment, self._warn)
        return None

    def _worker_defaults(self) -> dict[str, str]:
        return {**self._services.environment, DEADLINE_VARIABLE: self._preemption.path}

    def _watch(self, descriptor: int) -> None:
        assert self._epoll is not None
        self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        assert self._epoll is not None
        with suppress(OSError, ValueError):  # it is already closed
            self._epoll.unregister(descriptor)

    def _dump_stacks(self, hung_local_rank: int) -> protocol.Input | None:
        if not self._processes.can_dump_stacks:
            return protocol.StacksDumped()

        def dump() -> None:
            lines: tuple[str, ...] = ()
            try:
                lines = tuple(self._processes.dump_stacks(hung_local_rank, self.state.settings.dump_timeout))
            except BaseException as error:  # this thread must post its answer, whatever happens
                self._warn(f"the workers' stacks could not be dumped: {described(error)}")
            self.post(protocol.StacksDumped(lines))

        threading.Thread(target=dump, name="quorate-stacks", daemon=True).start()
        return None

    def _change_launch(self, launch: WorkerLaunch, assignment: Assignment) -> WorkerLaunch:
        return self._host.decide_or(launch, "launch", launch, assignment)

    def _stop(self, command: protocol.StopWorkers | protocol.ReleaseWorkers) -> protocol.Input | None:
        self._preparation.cancel()
        self._reporter.stopping()
        if isinstance(command, protocol.ReleaseWorkers):
            self._processes.release(command)
        else:
            self._processes.stop(command)
        return self._take_gone(self.post)


def _look_again() -> None:
    """Wake the agent's thread, which then looks at what the checks have found."""
