"""One simulated node: the production machines of its rendezvous and its agent, and what carries out their commands.

The rendezvous machine sits in the driver's own interpreter (``quorate.rendezvous._executor``); queues, threads and
sockets are simulated here: one call at a time, one blocking wait, an inbox per thread, a clock of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from attrs import evolve

from ..agent import _protocol as agent
from ..agent._machine import initial_state as initial_agent_state
from ..agent._machine import step as agent_step
from ..agent._membership import agent_input
from ..policy import default_restart
from ..records import (
    Assignment,
    Cause,
    FailureRecord,
    NodeRecord,
    RestartBudget,
    RestartDecision,
    RoundEnd,
    RoundSummary,
    Verdict,
    WorkerExited,
)
from ..rendezvous import _protocol as protocol
from ..rendezvous._executor import Interpreter, PendingWait
from ..rendezvous._ranks import order_nodes
from ._simulation_network import Waiting
from ._simulation_workers import BROKEN, SimulatedWorkers

if TYPE_CHECKING:
    from ._simulation import World

__all__ = ["SimulatedNode"]

_OPERATION_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_MOST_TURNS = 10_000
#: Threads do not wake exactly when they are due; it also keeps a rounding error from being a busy loop.
_OVERSLEPT_SECONDS = 1e-6
#: The phases of an agent that a transcript tells; the others follow from what it tells of the rendezvous and workers.
_TOLD = frozenset({agent.Phase.BARRIER, agent.Phase.STOPPING})


@final
class SimulatedNode:
    """One node of a :class:`World`; made by :meth:`World.add_node`.

    Arguments:
        clock: offset in seconds and rate of its monotonic clock against the world's.
        max_restarts, exit_barrier_timeout, grace_seconds: as for an agent.
    """

    def __init__(
        self,
        world: World,
        record: NodeRecord,
        settings: protocol.Settings,
        clock: tuple[float, float] = (0.0, 1.0),
        max_restarts: int = 3,
        exit_barrier_timeout: float = 300.0,
        grace_seconds: float = 30.0,
    ) -> None:
        self.world, self.record, self.settings = world, record, settings
        self._offset, self._rate = clock
        self.rendezvous = Interpreter(settings, self, self.clock, _OPERATION_SECONDS, self._watch)
        grace = agent.Grace(*(4 * (grace_seconds,)))
        self.agent = initial_agent_state(
            max_restarts, exit_barrier_timeout, grace, host=record.host, loss_timeout=settings.lease_timeout + 1.0
        )
        self.alive = self.is_up = True
        self.paused_until = 0.0
        # For the laws: whether it is in a trouble that has no end yet, and when the last one ended or will end.
        self.is_troubled, self.troubled_until = False, -1e9
        self.troubled_alone_until = -1e9
        self.workers: SimulatedWorkers | None = None
        self.history: list[Assignment] = []
        self.ends: list[RoundEnd] = []
        self.closed: RoundEnd | None = None
        self.gave_up: protocol.GaveUp | None = None
        self.finished: agent.Finish | None = None
        self.calls = self.bytes = 0
        self.problems: tuple[str, ...] = ()  # what its health checks find
        self.next_verdict: Verdict | None = None
        self.waiting: Waiting | None = None
        self._inbox: deque[protocol.Input] = deque()
        self._agent_inbox: deque[agent.Input] = deque()
        self._queue: deque[protocol.Call] = deque()
        self._is_calling = self._is_open = self._is_turning = self._is_agent_turning = False
        self._alarms: dict[str, float] = {}
        self._pending = PendingWait()
        self._is_out = False
        self._joins = 0
        self._in_line_since = 0.0
        self.begun_at = self.ended_at = world.now

    # --- what tests and laws look at --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.record.node_id

    @property
    def state(self) -> protocol.State:
        """What its rendezvous machine knows."""
        return self.rendezvous.state

    @property
    def running(self) -> Assignment | None:
        """The assignment whose workers run, even those that are being stopped."""
        return self.workers.assignment if self.workers is not None and self.workers.running else None

    def clock(self) -> float:
        """Return this node's own monotonic time."""
        return self._offset + self._rate * self.world.now

    def note_trouble(self, seconds: float = 0.0, alone: bool = True) -> None:
        """Something is done to this node, or to all at once, that others may notice, for ``seconds`` from now."""
        if alone:
            self.troubled_alone_until = max(self.troubled_alone_until, self.world.now + seconds)
        self.troubled_until = max(self.troubled_until, self.world.now + seconds)

    def healthy_since(self) -> float:
        """Return when its last trouble ended, in the world's time; infinity while it lasts."""
        return float("inf") if self.is_troubled else self.troubled_until

    def in_line_since(self) -> float:
        """Return when its record lay with the others of the round that it is joining; infinity if none does."""
        before = {protocol.Phase.LOCATING, protocol.Phase.TICKETING}
        is_in_line = self.state.phase in (protocol.JOINING - before) | {protocol.Phase.STANDBY}
        return self._in_line_since if is_in_line else float("inf")

    # --- threads ----------------------------------------------------------------------------------------------------

    def post(self, event: protocol.Input) -> None:
        """Hand the rendezvous thread an input."""
        self._inbox.append(event)
        self._wake(self._turn)

    def tell_agent(self, event: agent.Input) -> None:
        """Hand the agent's thread an input."""
        self._agent_inbox.append(event)
        self._wake(self._agent_turn)

    def _wake(self, turn: Callable[[], None]) -> None:
        delay = self.world.faults.thread_delay
        if delay:
            self.world.after(self.world.random.uniform(0.0, delay), turn)
        else:
            turn()

    def _is_asleep(self, turn: Callable[[], None]) -> bool:
        """Return whether ``turn`` cannot run now; a pause puts it off."""
        if self.is_up and self.paused_until > self.world.now:
            self.world.at(self.paused_until, turn)
            return True
        return not self.is_up

    def _turn(self) -> None:
        if self._is_turning or self._is_asleep(self._turn):
            return
        self._is_turning = True
        turns = 0
        while self.is_up:
            event = self.rendezvous.timely(self._is_calling and not self._is_open)
            if event is None:
                if not self._inbox:
                    break
                event = self._inbox.popleft()
            self.rendezvous.feed(event)
            turns += 1
            if turns > _MOST_TURNS:
                self.world.judge.fail("no-busy-loop", f"the rendezvous of {self.name} does not come to rest")
        self._is_turning = False
        self._set_alarm("rendezvous", self.rendezvous.next_due(), self._turn)

    def _agent_turn(self) -> None:
        if self._is_agent_turning or self._is_asleep(self._agent_turn):
            return
        self._is_agent_turning = True
        while self._agent_inbox and self.is_up and self.finished is None:
            self._feed_agent(self._agent_inbox.popleft())
        due = self.agent.wake_at
        if due is not None and due <= self.clock() and self.finished is None:
            self._feed_agent(agent.Clock(due=True))
        self._is_agent_turning = False
        if self.finished is None:
            self._set_alarm("agent", self.agent.wake_at, self._agent_turn)

    def _set_alarm(self, thread: str, due: float | None, turn: Callable[[], None]) -> None:
        if due is None or not self.is_up:
            return
        now = self.world.now
        when = max((due - self._offset) / self._rate, now) + _OVERSLEPT_SECONDS
        if now < self._alarms.get(thread, -1.0) <= when:
            return  # it wakes before that anyway, and will set the next one then
        self._alarms[thread] = when
        self.world.at(when, turn)

    # --- the rendezvous machine's hands -------------------------------------------------------------------------------

    def _watch(self, before: protocol.State, event: protocol.Input, result: protocol.Step) -> None:
        if before.phase is protocol.Phase.TICKETING is not result.state.phase:
            self._in_line_since = self.world.now
        if result.reason is before.reason and result.state.phase is before.phase:
            return
        if self.world.is_new(self, result.reason) or result.state.phase is not before.phase:
            self.world.note(self, result.state.phase.value, result.reason)

    def call(self, call: protocol.Call) -> None:
        self.calls += 1
        self.bytes += sum(map(len, call.values))
        self._queue.append(call)
        self._next_call()

    def _next_call(self) -> None:
        if self._is_calling or not self._queue or self._is_asleep(self._next_call):
            return
        self._is_calling = True
        self.world.network.send(self, self._queue.popleft(), self._answered)

    def _answered(self, event: protocol.Input) -> None:
        def hear() -> None:
            if self._is_asleep(hear):
                return
            self._is_calling = False
            if isinstance(event, protocol.Reply) and not self._is_open:
                self._is_open = True
                self._next_wait()
            self.post(event)
            self._next_call()

        hear()

    def aim(self, key: str | None) -> None:
        if not self._pending.aim(key):
            self._next_wait()
        elif self.waiting is not None:
            waiting = self.waiting
            delay = self.world.interrupt_seconds
            self.world.after(self.world.random.uniform(0.0, delay) if delay else 0.0, lambda: waiting.end(None))

    def _next_wait(self) -> None:
        if not self._is_open or self._pending.is_waiting or self._is_asleep(self._next_wait):
            return
        key = self._pending.begin()
        if key is not None:
            self.waiting = self.world.network.wait(self, key, lambda value, trouble: self._waited(key, value, trouble))

    def _waited(self, key: str, value: bytes | None, trouble: protocol.Failed | None) -> None:
        def hear() -> None:
            if self._is_asleep(hear):
                return
            self.waiting = None
            event = self._pending.finish(key, value, trouble)
            if event is not None:
                self.post(event)
                if self.world.faults.wake_twice and self.world.random.random() < self.world.faults.wake_twice:
                    self.world.count("wake-up doubled")
                    self.post(event)
            self._next_wait()

        hear()

    def tell(self, output: protocol.Output, /) -> None:
        if isinstance(output, protocol.Joined):
            self.history.append(output.assignment)
            self.world.judge.joins(self, output.assignment)
        elif isinstance(output, protocol.Ended):
            self.ends.append(output.end)
            self.world.judge.hears(self, output.end)
        elif isinstance(output, protocol.Closed):
            self.closed = output.end
            self.world.judge.hears(self, output.end)
        elif isinstance(output, protocol.GaveUp):
            self.gave_up = output
        if isinstance(output, (protocol.Closed, protocol.GaveUp, protocol.Gone)):
            self._is_out = True
            if self.finished is not None:
                self._exit()
        event = agent_input(output)
        if event is not None:
            self.tell_agent(event)

    def decide_ranks(self, nodes: Sequence[NodeRecord], previous: Sequence[str], /) -> Sequence[str]:
        return order_nodes(nodes, previous)

    def decide_rescale(self, summary: RoundSummary, waiting: int, /) -> bool:
        return waiting > 0 and summary.group_world_size < summary.max_nodes

    # --- the agent machine's hands ------------------------------------------------------------------------------------

    def _feed_agent(self, event: agent.Input) -> None:
        if isinstance(event, agent.WorkerHung):
            workers = self.workers
            if workers is None or not workers.is_running(event.local_rank, event.pid):
                return
        backlog: deque[agent.Input] = deque([event])
        while backlog and self.finished is None:
            before = self.agent
            result = agent_step(before, backlog.popleft(), self.clock())
            self.agent = result.state
            if result.state.phase is not before.phase and result.state.phase in _TOLD:
                self.world.note(self, "agent", f"{result.state.phase.value}: {result.reason}")
            for command in result.commands:
                answer = self._do(command)
                if answer is not None:
                    backlog.append(answer)

    def _do(self, command: agent.Command) -> agent.Input | None:
        if isinstance(command, agent.CheckNode):
            return agent.NodeChecked(self.problems)
        if isinstance(command, agent.JoinRound):
            self._joins += 1
            self.post(protocol.Join(evolve(self.record, port=1000 + self._joins)))
        elif isinstance(command, agent.StartWorkers):
            return self._start_workers(command.assignment)
        elif isinstance(command, agent.StopWorkers):
            return self._stop_workers(command)
        elif isinstance(command, agent.Diagnose):
            return self._diagnose(command)
        elif isinstance(command, agent.Decide):
            return agent.Diagnosed(command.failure, self._decide(command.failure, command.budget))
        elif isinstance(command, agent.DumpStacks):
            self.world.after(self.world.random.uniform(0.0, 1.0), lambda: self.tell_agent(agent.StacksDumped()))
        elif isinstance(command, agent.EndRound):
            self.post(protocol.End(command.end))
        elif isinstance(command, agent.ReportDone):
            self.post(protocol.Done())
        elif isinstance(command, agent.Decline):
            self.post(protocol.Join(evolve(self.record, declined=command.problem)))
        elif isinstance(command, agent.Leave):
            self.post(protocol.Leave())
        else:
            self._finish(command)
        return None

    def _start_workers(self, assignment: Assignment) -> agent.Input | None:
        self.world.judge.starts(self, assignment)
        plans = [self.world.plan(self, assignment, local_rank) for local_rank in range(assignment.local_world_size)]
        for local_rank, plan in enumerate(plans):
            if plan.outcome == "unstartable":
                self.world.judge.stops(self)
                return agent.StartFailed(WorkerExited(local_rank, 0, 127, 0, problem="no such program"))
        self.workers = SimulatedWorkers(self, assignment, plans, self.world.take_pids(len(plans)))
        return None

    def _stop_workers(self, command: agent.StopWorkers) -> agent.Input | None:
        if self.running is None:
            self.workers = None
            return agent.WorkersGone()
        assert self.workers is not None
        self.workers.stop(command.signal_number, command.grace_seconds)
        return None

    def workers_are_gone(self) -> None:
        """All have stopped, as they were asked to."""
        self.workers = None
        self.tell_agent(agent.WorkersGone())

    def _diagnose(self, command: agent.Diagnose) -> agent.Input:
        assignment, exit = self.agent.assignment, command.exit
        assert assignment is not None
        cause = Cause.EXCEPTION if exit.exit_code > 0 else Cause.SIGNAL
        if command.start_failed:
            cause = Cause.START_FAILED
        elif command.hung:
            cause = Cause.HANG
        elif exit.problem == BROKEN:
            cause = Cause.BROKEN_COLLECTIVE
        failure = FailureRecord(
            assignment.first_rank + exit.local_rank,
            exit.local_rank,
            exit.pid,
            exit.exit_code,
            cause,
            exit.problem or "it raised",
            0,
            node_id=assignment.node_id,
            host=self.record.host,
            restart_count=assignment.restart_count,
        )
        return agent.Diagnosed(failure, None if command.budget is None else self._decide(failure, command.budget))

    def _decide(self, failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
        verdict, self.next_verdict = self.next_verdict, None
        decision = default_restart(failure, budget) if verdict is None else RestartDecision(verdict, "as asked")
        if decision.delay_seconds:  # the policy's pause is random; here it comes from the seed
            decision = evolve(decision, delay_seconds=self.world.random.uniform(0.5, 2.0))
        return decision

    def _finish(self, finish: agent.Finish) -> None:
        self.finished = finish
        self.world.judge.finishes(self)
        if self._is_out:
            self._exit()
        else:
            self.post(protocol.Leave())
            self.world.after(_CLOSE_SECONDS, self._exit)

    def _exit(self) -> None:
        if self.is_up:
            self.is_up, self.ended_at = False, self.world.now
            self.world.note(self, "agent", "exits")
