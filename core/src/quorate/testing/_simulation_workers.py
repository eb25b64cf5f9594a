"""Simulated workers of one node: they start, succeed, fail, hang, and take their time to stop.

Workers are processes of their own: a paused agent does not pause them.  A live one that has left its world takes no
further step in it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Protocol, final

from attrs import evolve, frozen

from ..agent import _protocol as agent
from ..policy import default_restart
from ..records import Assignment, Cause, FailureRecord, RestartBudget, RestartDecision, Verdict, WorkerExited
from ._simulation_timeline import Timeline

#: The problem of a worker whose connection to another worker broke.
_BROKEN = "connection closed by peer"
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

    It needs ``stop_after`` seconds to stop; when its grace is over before that, it is killed.  A live one leaves its
    world ``leave_after`` seconds after it was asked to, and ends while it waits for the next one, if ``end_after`` so
    many seconds no assignment has come.
    """

    outcome: WorkerOutcome = WorkerOutcome.RUN
    after: float = 0.0
    stop_after: float = 0.05
    leave_after: float | None = None
    end_after: float = 1e9


_PLANNED = (WorkerOutcome.SUCCEED, WorkerOutcome.FAIL, WorkerOutcome.HANG)


class WorkerHost(Protocol):
    """The node that the workers run on."""

    @property
    def name(self) -> str: ...

    def post_to_agent(self, event: agent.Input) -> None: ...

    def on_worker_failed(self, round_number: int) -> None: ...

    def on_workers_succeeded(self, assignment: Assignment) -> None: ...

    def on_workers_ended(self) -> None: ...

    def on_workers_stopped(self, kept: frozenset[int]) -> None: ...

    def on_step(self, assignment: Assignment, local_rank: int) -> None: ...


@final
class SimulatedWorkers:
    """All workers of one round on one node."""

    def __init__(
        self, timeline: Timeline, host: WorkerHost, assignment: Assignment, plans: list[Plan], pids: list[int]
    ) -> None:
        self._timeline, self._host, self.pids = timeline, host, pids
        self.assignment, self.plans = assignment, plans
        self.running = set(range(len(plans)))
        self.succeeded: set[int] = set()
        self.waiting: set[int] = set()  # live ones that have left their world
        self.ended_unnoticed: set[int] = set()  # of those that waited, while word of their end is on its way
        self._is_stopping = self._is_releasing = self.is_frozen = False
        self._held_back: list[Callable[[], None]] = []  # what frozen workers would do
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
        """Ask all to stop, those that wait included; ``WorkersGone`` follows when they have."""
        self._is_releasing = False
        for local_rank in sorted(self.running | self.waiting):
            self._stop_one(local_rank, signal_number, grace_seconds)

    def release(self, command: agent.ReleaseWorkers) -> None:
        """Ask live ones to leave their world, and the others to stop; ``WorkersGone`` follows when they have."""
        self._is_releasing = True
        stop = partial(self._stop_one, signal_number=command.signal_number, grace_seconds=command.grace_seconds)
        for local_rank in sorted(self.running):
            wanted = self.plans[local_rank].leave_after
            if wanted is None or local_rank == command.given_up:
                stop(local_rank)
            elif wanted > command.release_seconds:
                self._timeline.after(command.release_seconds, partial(self._stop_late, local_rank, stop))
            else:
                self._timeline.after(wanted, partial(self._leave, local_rank))
        self._is_stopping = True

    def _stop_late(self, local_rank: int, stop: Callable[[int], None]) -> None:
        if self._is_releasing:
            stop(local_rank)

    def _leave(self, local_rank: int) -> None:
        if local_rank not in self.running or not self._is_releasing:
            return
        self._host.on_step(self.assignment, local_rank)  # its last one
        self.running.discard(local_rank)
        self.waiting.add(local_rank)
        self._timeline.note(self._host.name, "workers", f"local rank {local_rank} leaves its world")
        self._timeline.after(self.plans[local_rank].end_after, partial(self._end, local_rank, 1))
        self._look_whether_done()

    def take(self, local_rank: int) -> int:
        """Return the pid of a worker that waits, as far as its agent knows, and now goes on in the next world."""
        self.waiting.discard(local_rank)
        return self.pids[local_rank]

    def notice(self, exits: Sequence[WorkerExited]) -> None:
        """The agent learns of these ends."""
        self.ended_unnoticed -= {exit.local_rank for exit in exits}

    def _stop_one(self, local_rank: int, signal_number: int, grace_seconds: float) -> None:
        self._is_stopping = True
        if local_rank in self.running | self.waiting:
            wanted = self.plans[local_rank].stop_after
            if self.is_frozen:
                wanted = float("inf")  # it cannot follow a request to stop
            is_killed = signal_number == signal.SIGKILL or wanted > grace_seconds
            code = -signal.SIGKILL if is_killed else -signal_number
            seconds = _KILL_SECONDS if signal_number == signal.SIGKILL else min(wanted, grace_seconds)
            self._timeline.after(seconds, partial(self._end, local_rank, code, stopped=True))

    def freeze(self) -> None:
        """Have all of them stand still."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Have them go on, with what was due meanwhile."""
        self.is_frozen, held_back, self._held_back = False, self._held_back, []
        for action in held_back:
            action()

    def kill(self) -> None:
        """The node was killed, and its workers with it."""
        self.running.clear()
        self.waiting.clear()
        self._host.on_worker_failed(self.assignment.round_number)

    def is_running(self, local_rank: int, pid: int) -> bool:
        return local_rank in self.running and pid == self.pids[local_rank]

    def _act(self, local_rank: int, plan: Plan) -> None:
        if local_rank not in self.running or self._is_stopping:
            return
        if self.is_frozen:
            self._held_back.append(partial(self._act, local_rank, plan))
            return
        if plan.after and self.plans[local_rank] is not plan:
            return  # the plan was cancelled meanwhile
        self._timeline.note(self._host.name, "workers", f"local rank {local_rank} {plan.outcome.value}s")
        if plan.outcome is WorkerOutcome.HANG:
            self._host.post_to_agent(agent.WorkerHung(local_rank, self.pids[local_rank], "no progress"))
        else:
            problem = _BROKEN if plan.outcome is WorkerOutcome.BREAK else ""
            self._end(local_rank, 0 if plan.outcome is WorkerOutcome.SUCCEED else 1, problem=problem)

    def _end(self, local_rank: int, code: int, stopped: bool = False, problem: str = "") -> None:
        if local_rank not in self.running | self.waiting:
            return
        had_left = local_rank in self.waiting
        self.running.discard(local_rank)
        self.waiting.discard(local_rank)
        if had_left:
            self.ended_unnoticed.add(local_rank)
        if code == 0:
            self.succeeded.add(local_rank)
            if len(self.succeeded) == len(self.plans):
                self._host.on_workers_succeeded(self.assignment)
        exit = WorkerExited(local_rank, self.pids[local_rank], code, 0, stopped=stopped, problem=problem)
        if not self.running and not had_left:
            self._host.on_workers_ended()
        self._host.post_to_agent(agent.WorkersExited((exit,)))
        if code != 0 and not had_left:
            self._host.on_worker_failed(self.assignment.round_number)
        if not had_left or self._is_stopping:
            self._look_whether_done(has_ended=True)

    def _look_whether_done(self, has_ended: bool = False) -> None:
        if not self.running and not has_ended:
            self._host.on_workers_ended()
        if self._is_stopping and not self.running and (self._is_releasing or not self.waiting):
            self._is_stopping = False
            self._host.on_workers_stopped(frozenset(self.waiting))


def decide_restart(
    timeline: Timeline, failure: FailureRecord, budget: RestartBudget, asked: Verdict | None
) -> RestartDecision:
    """Return what the policy decides about a failure: what was ``asked`` for, or the default."""
    decision = default_restart(failure, budget) if asked is None else RestartDecision(asked, "as asked")
    if decision.delay_seconds:  # the policy draws a random pause; here it comes from the seed
        decision = evolve(decision, delay_seconds=timeline.random.uniform(0.5, 2.0))
    return decision


def describe_failure(command: agent.Diagnose, assignment: Assignment, host: str) -> FailureRecord:
    """Return what an agent finds out about a worker that has failed."""
    exit = command.exit
    cause = Cause.EXCEPTION if exit.exit_code > 0 else Cause.SIGNAL
    if command.start_failed:
        cause = Cause.START_FAILED
    elif command.hung:
        cause = Cause.HANG
    elif exit.problem == _BROKEN:
        cause = Cause.BROKEN_COLLECTIVE
    return FailureRecord(
        assignment.first_rank + exit.local_rank,
        exit.local_rank,
        exit.pid,
        exit.exit_code,
        cause,
        exit.problem or "it raised",
        0,
        node_id=assignment.node_id,
        host=host,
        restart_count=assignment.restart_count,
    )
