"""Simulated workers of one node: they start, succeed, fail, hang, and take their time to stop.

Workers are processes of their own: a paused agent does not pause them.
"""

from __future__ import annotations

import signal
from enum import Enum
from functools import partial
from typing import Protocol, final

from attrs import frozen

from ..agent import _protocol as agent
from ..records import Assignment, WorkerExited
from ._simulation_timeline import Timeline

__all__ = ["BROKEN", "Plan", "SimulatedWorkers", "WorkerHost", "WorkerOutcome"]

#: The problem of a worker whose connection to another worker broke.
BROKEN = "connection closed by peer"
_KILL_SECONDS = 0.001


@final
class WorkerOutcome(str, Enum):
    """What becomes of one worker."""

    RUN = "run"  # until something happens to it
    SUCCEED = "succeed"
    FAIL = "fail"
    HANG = "hang"
    BREAK = "break"  # over another worker's end
    UNSTARTABLE = "unstartable"


@final
@frozen
class Plan:
    """What one worker will do: ``outcome`` ``after`` so many seconds (at once for ``RUN`` and ``UNSTARTABLE``).

    It needs ``stop_after`` seconds to stop; when its grace is over before that, it is killed.
    """

    outcome: WorkerOutcome = WorkerOutcome.RUN
    after: float = 0.0
    stop_after: float = 0.05


_PLANNED = (WorkerOutcome.SUCCEED, WorkerOutcome.FAIL, WorkerOutcome.HANG)


class WorkerHost(Protocol):
    """The node that the workers run on."""

    @property
    def name(self) -> str: ...

    def post_to_agent(self, event: agent.Input) -> None: ...

    def on_worker_failed(self, round_number: int) -> None: ...

    def on_workers_succeeded(self, assignment: Assignment) -> None: ...

    def on_workers_ended(self) -> None: ...

    def on_workers_stopped(self) -> None: ...


@final
class SimulatedWorkers:
    """All workers of one round on one node."""

    def __init__(
        self, timeline: Timeline, host: WorkerHost, assignment: Assignment, plans: list[Plan], first_pid: int
    ) -> None:
        self._timeline, self._host, self._first_pid = timeline, host, first_pid
        self.assignment, self.plans = assignment, plans
        self.running = set(range(len(plans)))
        self.succeeded: set[int] = set()
        self._is_stopping = False
        for local_rank, plan in enumerate(plans):
            if plan.outcome in _PLANNED:
                timeline.after(plan.after, partial(self._act, local_rank, plan))

    def act(self, outcome: WorkerOutcome, local_rank: int = 0) -> None:
        """Have one worker succeed, fail, hang or break now."""
        self._act(local_rank, Plan(outcome))

    def cancel_plans(self) -> None:
        """From now on nothing that was planned happens."""
        self.plans = [Plan(stop_after=plan.stop_after) for plan in self.plans]

    def stop(self, signal_number: int, grace_seconds: float) -> None:
        """Ask all to stop; ``WorkersGone`` follows when they have."""
        self._is_stopping = True
        for local_rank in sorted(self.running):
            wanted = self.plans[local_rank].stop_after
            is_killed = signal_number == signal.SIGKILL or wanted > grace_seconds
            code = -signal.SIGKILL if is_killed else -signal_number
            seconds = _KILL_SECONDS if signal_number == signal.SIGKILL else min(wanted, grace_seconds)
            self._timeline.after(seconds, partial(self._end, local_rank, code, stopped=True))

    def kill(self) -> None:
        """The node was killed, and its workers with it."""
        self.running.clear()
        self._host.on_worker_failed(self.assignment.round_number)

    def is_running(self, local_rank: int, pid: int) -> bool:
        return local_rank in self.running and pid == self._first_pid + local_rank

    def _act(self, local_rank: int, plan: Plan) -> None:
        if local_rank not in self.running or self._is_stopping:
            return
        if plan.after and self.plans[local_rank] is not plan:
            return  # the plan was cancelled meanwhile
        self._timeline.note(self._host.name, "workers", f"local rank {local_rank} {plan.outcome.value}s")
        if plan.outcome is WorkerOutcome.HANG:
            self._host.post_to_agent(agent.WorkerHung(local_rank, self._first_pid + local_rank, "no progress"))
        else:
            problem = BROKEN if plan.outcome is WorkerOutcome.BREAK else ""
            self._end(local_rank, 0 if plan.outcome is WorkerOutcome.SUCCEED else 1, problem=problem)

    def _end(self, local_rank: int, code: int, stopped: bool = False, problem: str = "") -> None:
        if local_rank not in self.running:
            return
        self.running.discard(local_rank)
        if code == 0:
            self.succeeded.add(local_rank)
            if len(self.succeeded) == len(self.plans):
                self._host.on_workers_succeeded(self.assignment)
        exit = WorkerExited(local_rank, self._first_pid + local_rank, code, 0, stopped=stopped, problem=problem)
        if not self.running:
            self._host.on_workers_ended()
        self._host.post_to_agent(agent.WorkersExited((exit,)))
        if code != 0:
            self._host.on_worker_failed(self.assignment.round_number)
        if self._is_stopping and not self.running:
            self._host.on_workers_stopped()
