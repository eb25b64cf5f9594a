"""Simulated workers of one node: they start, succeed, fail, hang, and take their time to stop.

Workers are processes of their own: a paused agent does not pause them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from attrs import frozen

from ..agent import _protocol as agent
from ..records import Assignment, WorkerExited

if TYPE_CHECKING:
    from ._simulation_node import SimulatedNode

__all__ = ["BROKEN", "Plan", "SimulatedWorkers"]

#: What a worker says whose connection to another one broke.
BROKEN = "connection closed by peer"
_SIGKILL = 9


@final
@frozen
class Plan:
    """What one worker will do.

    ``outcome`` is ``run`` (until it is told otherwise), ``succeed``, ``fail`` or ``hang``, the latter three ``after``
    so many seconds, or ``unstartable``.  It needs ``stop_after`` seconds to stop; at its grace's end it is killed.
    """

    outcome: str = "run"
    after: float = 0.0
    stop_after: float = 0.05


@final
class SimulatedWorkers:
    """All workers of one round on one node."""

    def __init__(self, node: SimulatedNode, assignment: Assignment, plans: list[Plan], first_pid: int) -> None:
        self.node, self.assignment, self.plans, self._first_pid = node, assignment, plans, first_pid
        self.started_at = node.world.now
        self.running = set(range(len(plans)))
        self.succeeded: set[int] = set()
        self._is_stopping = False
        for local_rank, plan in enumerate(plans):
            if plan.outcome in ("succeed", "fail", "hang"):
                self._later(plan.after, lambda rank=local_rank, plan=plan: self._act(rank, plan))  # type: ignore[misc] # mypy knows no defaults of lambdas

    def act(self, outcome: str, local_rank: int = 0) -> None:
        """Have one worker ``succeed``, ``fail``, ``hang`` or ``break`` (over another one's end) now."""
        self._act(local_rank, Plan(outcome))

    def calm(self) -> None:
        """Whatever was planned does not come to pass any more."""
        self.plans = [Plan("run", stop_after=plan.stop_after) for plan in self.plans]

    def stop(self, signal_number: int, grace_seconds: float) -> None:
        """Ask all to stop; ``WorkersGone`` follows when they have."""
        self._is_stopping = True
        for local_rank in sorted(self.running):
            wanted = self.plans[local_rank].stop_after
            killed = signal_number == _SIGKILL or wanted > grace_seconds
            code = -_SIGKILL if killed else -signal_number
            seconds = 0.001 if signal_number == _SIGKILL else min(wanted, grace_seconds)
            self._later(seconds, lambda rank=local_rank, code=code: self._end(rank, code, stopped=True))  # type: ignore[misc] # as above

    def kill(self) -> None:
        """The node has died, and its workers with it."""
        self.running.clear()
        self.node.world.break_collectives(self.node, self.assignment.round_number)

    def is_running(self, local_rank: int, pid: int) -> bool:
        return local_rank in self.running and pid == self._first_pid + local_rank

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self.node.world.after(seconds, action)

    def _act(self, local_rank: int, plan: Plan) -> None:
        if local_rank not in self.running or self._is_stopping:
            return
        if plan.after and self.plans[local_rank] is not plan:
            return  # calmed down meanwhile
        if plan.outcome == "hang":
            pid = self._first_pid + local_rank
            self.node.world.note(self.node, "workers", f"local rank {local_rank} hangs")
            self.node.tell_agent(agent.WorkerHung(local_rank, pid, "no progress"))
        else:
            self.node.world.note(self.node, "workers", f"local rank {local_rank} {plan.outcome}s")
            self._end(local_rank, 0 if plan.outcome == "succeed" else 1, problem=BROKEN * (plan.outcome == "break"))

    def _end(self, local_rank: int, code: int, stopped: bool = False, problem: str = "") -> None:
        if local_rank not in self.running:
            return
        self.running.discard(local_rank)
        if code == 0:
            self.succeeded.add(local_rank)
            if len(self.succeeded) == len(self.plans):
                self.node.world.judge.succeeds(self.node, self.assignment)
        exit = WorkerExited(local_rank, self._first_pid + local_rank, code, 0, stopped=stopped, problem=problem)
        if not self.running:
            self.node.world.judge.stops(self.node)
        self.node.tell_agent(agent.WorkersExited((exit,)))
        if code != 0:
            self.node.world.break_collectives(self.node, self.assignment.round_number)
        if self._is_stopping and not self.running:
            self.node.workers_are_gone()
