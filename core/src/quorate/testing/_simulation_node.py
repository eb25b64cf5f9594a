"""One simulated node: the production machines of its rendezvous and its agent, and what carries out their commands.

The rendezvous machine is run by the driver's own interpreter (``quorate.rendezvous._executor``).  Queues, threads and
sockets are simulated here: one call at a time, one blocking wait, an inbox per thread, a clock of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, final

from attrs import evolve

from ..agent import _protocol as agent
from ..agent._machine import step as agent_step
from ..agent._state import Settings as AgentSettings, State as AgentState
from ..records import (
    Assignment,
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
from ..rendezvous._state import State, Step
from ._simulation_law import Law
from ._simulation_laws import Judge
from ._simulation_network import Network, Waiting
from ._simulation_timeline import Timeline
from ._simulation_workers import Plan, SimulatedWorkers, WorkerOutcome, decide_restart, describe_failure

#: How long a simulated live worker may take to leave its world.
RELEASE_SECONDS = 2.0
_OPERATION_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_MOST_STEPS = 10_000
#: Threads wake a little late; it also keeps a rounding error from becoming a busy loop.
_LATE_SECONDS = 1e-6
#: The phases of an agent that the transcript names; the others follow from its lines about rendezvous and workers.
_NOTED = frozenset({agent.Phase.BARRIER, agent.Phase.STOPPING})


class Surroundings(Protocol):
    """The world, as far as a node uses it."""

    timeline: Timeline
    network: Network
    judge: Judge
    interrupt_seconds: float
    plan: Callable[[SimulatedNode, Assignment, int], Plan]

    def take_pids(self, number: int) -> int: ...

    def break_collectives(self, node: SimulatedNode, round_number: int) -> None: ...

    def freeze(self, node: SimulatedNode, freezes: bool) -> None: ...


@final
class SimulatedNode:
    """One node of a :class:`World`; made by :meth:`World.add_node`.

    Arguments:
        clock: offset in seconds and rate of its monotonic clock against the world's.
        max_restarts, grace_seconds: as for an agent.
    """

    def __init__(
        self,
        world: Surroundings,
        record: NodeRecord,
        settings: protocol.Settings,
        clock: tuple[float, float],
        max_restarts: int,
        grace_seconds: float,
    ) -> None:
        self._world, self._timeline, self._judge = world, world.timeline, world.judge
        self.record, self.settings, self.name = record, settings, record.node_id
        self._offset, self._rate = clock
        self.rendezvous = Interpreter(settings, self, self.clock, _OPERATION_SECONDS, self._on_step)
        self.agent = AgentState(
            AgentSettings(
                max_restarts,
                300.0,  # of the exit barrier
                agent.Grace(*(4 * (grace_seconds,))),
                loss_timeout=settings.timeouts.lease_timeout + 1.0,
                when_cut_off=settings.when_cut_off,
                release_timeout=RELEASE_SECONDS,
                host=record.host,
            )
        )
        self.alive = self.is_up = True
        self.paused_until = 0.0
        # For the laws: whether it is in trouble without a known end, and when the last trouble ended or will end.
        self.is_troubled, self.troubled_until = False, -1e9
        self.troubled_alone_until = -1e9
        self.workers: SimulatedWorkers | None = None
        self.history: list[Assignment] = []
        self.ends: list[RoundEnd] = []
        self.closed: RoundEnd | None = None
        self.gave_up: protocol.RendezvousFailed | None = None
        self.finished: agent.Finish | None = None
        self.calls = self.bytes = 0
        self.problems: tuple[str, ...] = ()  # what its health checks find
        self.next_verdict: Verdict | None = None
        self.waiting: Waiting | None = None
        self._inbox: deque[protocol.Input] = deque()
        self._agent_inbox: deque[agent.Input] = deque()
        self._queue: deque[protocol.Call] = deque()
        self._is_calling = self._is_open = self._is_stepping = self._is_agent_stepping = False
        self._alarms: dict[str, float] = {}
        self._pending = PendingWait()
        self._has_departed = False
        self._joins = 0
        self._in_line_since = 0.0
        self.begun_at = self.ended_at = self._timeline.now

    # --- what tests and laws look at --------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of its rendezvous machine."""
        return self.rendezvous.state

    @property
    def running(self) -> Assignment | None:
        """The assignment whose workers run, even those that are being stopped."""
        return self.workers.assignment if self.workers is not None and self.workers.running else None

    @property
    def has_waiting(self) -> bool:
        """Whether live workers of it wait for the next round."""
        return self.workers is not None and bool(self.workers.waiting)

    def clock(self) -> float:
        """Return this node's own monotonic time."""
        return self._offset + self._rate * self._timeline.now

    def note_trouble(self, seconds: float = 0.0, alone: bool = True) -> None:
        """Note that something other nodes may notice happens to this node, for ``seconds`` from now.

        Arguments:
            alone: it does not happen to all nodes at once.
        """
        if alone:
            self.troubled_alone_until = max(self.troubled_alone_until, self._timeline.now + seconds)
        self.troubled_until = max(self.troubled_until, self._timeline.now + seconds)

    def healthy_since(self) -> float:
        """Return when its last trouble ended, in the world's time; infinity while it lasts."""
        return float("inf") if self.is_troubled else self.troubled_until

    def in_line_since(self) -> float:
        """Return when its record was written for the round that it is joining; infinity if it is not in line."""
        before = {protocol.Phase.LOCATING, protocol.Phase.TICKETING}
        is_in_line = self.state.phase in (protocol.JOINING - before) | {protocol.Phase.STANDBY}
        return self._in_line_since if is_in_line else float("inf")

    # --- threads ----------------------------------------------------------------------------------------------------

    def post(self, event: protocol.Input) -> None:
        """Hand the rendezvous thread an input."""
        self._inbox.append(event)
        self._wake(self._step)

    def post_to_agent(self, event: agent.Input) -> None:
        """Hand the agent's thread an input."""
        self._agent_inbox.append(event)
        self._wake(self._step_agent)

    def _wake(self, action: Callable[[], None]) -> None:
        delay = self._world.network.faults.thread_delay
        if delay:
            self._timeline.after(self._timeline.random.uniform(0.0, delay), action)
        else:
            action()

    def _is_asleep(self, action: Callable[[], None]) -> bool:
        """Return whether ``action`` cannot run now; a pause postpones it."""
        if self.is_up and self.paused_until > self._timeline.now:
            self._timeline.at(self.paused_until, action)
            return True
        return not self.is_up

    def _step(self) -> None:
        if self._is_stepping or self._is_asleep(self._step):
            return
        self._is_stepping = True
        steps = 0
        while self.is_up:
            event = self.rendezvous.due_input(self._is_calling and not self._is_open)
            if event is None:
                if not self._inbox:
                    break
                event = self._inbox.popleft()
            self.rendezvous.feed(event)
            steps += 1
            if steps > _MOST_STEPS:
                self._judge.fail(Law.NO_BUSY_LOOP, f"the rendezvous of {self.name} does not come to rest")
        self._is_stepping = False
        self._set_alarm("rendezvous", self.rendezvous.next_due_at(), self._step)

    def _step_agent(self) -> None:
        if self._is_agent_stepping or self._is_asleep(self._step_agent):
            return
        self._is_agent_stepping = True
        while self._agent_inbox and self.is_up and self.finished is None:
            self._feed_agent(self._agent_inbox.popleft())
        due = self.agent.wake_at
        if due is not None and due <= self.clock() and self.finished is None:
            self._feed_agent(agent.Clock(due=True))
        self._is_agent_stepping = False
        if self.finished is None:
            self._set_alarm("agent", self.agent.wake_at, self._step_agent)

    def _set_alarm(self, thread: str, due: float | None, action: Callable[[], None]) -> None:
        if due is None or not self.is_up:
            return
        now = self._timeline.now
        when = max((due - self._offset) / self._rate, now) + _LATE_SECONDS
        if now < self._alarms.get(thread, -1.0) <= when:
            return  # it wakes before that anyway, and will then set the next alarm
        self._alarms[thread] = when
        self._timeline.at(when, action)

    # --- the rendezvous machine's commands ----------------------------------------------------------------------------

    def _on_step(self, before: State, event: protocol.Input, result: Step) -> None:
        self._judge.steps(self, before, event, result)
        if before.phase is protocol.Phase.TICKETING is not result.state.phase:
            self._in_line_since = self._timeline.now
        if result.reason is before.reason and result.state.phase is before.phase:
            return
        if self._timeline.is_new(self.name, result.reason) or result.state.phase is not before.phase:
            self._timeline.note(self.name, result.state.phase.value, result.reason)

    def call(self, call: protocol.Call) -> None:
        self.calls += 1
        self.bytes += sum(map(len, call.values))
        self._queue.append(call)
        self._next_call()

    def _next_call(self) -> None:
        if self._is_calling or not self._queue or self._is_asleep(self._next_call):
            return
        self._is_calling = True
        self._world.network.send(self, self._queue.popleft(), self._answered)

    def _answered(self, event: protocol.Input) -> None:
        def deliver() -> None:
            if self._is_asleep(deliver):
                return
            self._is_calling = False
            if isinstance(event, protocol.Reply) and not self._is_open:
                self._is_open = True
                self._next_wait()
            self.post(event)
            self._next_call()

        deliver()

    def wait_for(self, key: str | None) -> None:
        if not self._pending.set_key(key):
            self._next_wait()
        elif self.waiting is not None:
            waiting = self.waiting
            delay = self._world.interrupt_seconds
            self._timeline.after(self._timeline.random.uniform(0.0, delay) if delay else 0.0, lambda: waiting.end(None))

    def _next_wait(self) -> None:
        if not self._is_open or self._pending.is_waiting or self._is_asleep(self._next_wait):
            return
        key = self._pending.begin()
        if key is not None:
            self.waiting = self._world.network.wait(self, key, partial(self._waited, key))

    def _waited(self, key: str, value: bytes | None, failure: protocol.Failed | None) -> None:
        def deliver() -> None:
            if self._is_asleep(deliver):
                return
            self.waiting = None
            event = self._pending.finish(key, value, failure)
            if event is not None:
                self.post(event)
                chance = self._world.network.faults.wake_twice
                if chance and self._timeline.random.random() < chance:
                    self._timeline.count("wake-up doubled")
                    self.post(event)
            self._next_wait()

        deliver()

    def emit(self, output: protocol.Output, /) -> None:
        if isinstance(output, protocol.RoundJoined):
            self.history.append(output.assignment)
            self._judge.joins(self, output.assignment)
        elif isinstance(output, protocol.RoundEnded):
            self.ends.append(output.end)
            self._judge.learns_end(self, output.end)
        elif isinstance(output, protocol.JobClosed):
            self.closed = output.end
            self._judge.learns_end(self, output.end)
        elif isinstance(output, protocol.RendezvousFailed):
            self.gave_up = output
        if isinstance(output, (protocol.JobClosed, protocol.RendezvousFailed, protocol.Left)):
            self._has_departed = True
            if self.finished is not None:
                self._exit()
        if not isinstance(output, protocol.Left):
            self.post_to_agent(output)

    def decide_ranks(self, nodes: Sequence[NodeRecord], previous: Sequence[str], /) -> Sequence[str]:
        return order_nodes(nodes, previous)

    def decide_rescale(self, summary: RoundSummary, waiting: int, /) -> bool:
        return waiting > 0 and summary.group_world_size < summary.max_nodes

    # --- the agent machine's commands ---------------------------------------------------------------------------------

    def _feed_agent(self, event: agent.Input) -> None:
        if isinstance(event, agent.WorkerHung):
            workers = self.workers
            if workers is None or not workers.is_running(event.local_rank, event.pid):
                return
        elif isinstance(event, agent.WorkersExited) and self.workers is not None:
            self.workers.notice(event.exits)
        backlog: deque[agent.Input] = deque([event])
        while backlog and self.finished is None:
            before = self.agent
            result = agent_step(before, backlog.popleft(), self.clock())
            self.agent = result.state
            if result.state.phase is not before.phase and result.state.phase in _NOTED:
                self._timeline.note(self.name, "agent", f"{result.state.phase.value}: {result.reason}")
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
            return self._start_workers(command)
        elif isinstance(command, (agent.StopWorkers, agent.ReleaseWorkers)):
            return self._stop_workers(command)
        elif isinstance(command, (agent.FreezeWorkers, agent.ThawWorkers)):
            self._world.freeze(self, isinstance(command, agent.FreezeWorkers))
        elif isinstance(command, agent.Diagnose):
            return self._diagnose(command)
        elif isinstance(command, agent.Decide):
            return agent.Diagnosed(command.failure, self._decide(command.failure, command.budget))
        elif isinstance(command, agent.DumpStacks):
            seconds = self._timeline.random.uniform(0.0, 1.0)
            self._timeline.after(seconds, lambda: self.post_to_agent(agent.StacksDumped()))
        elif isinstance(command, agent.EndRound):
            self.post(protocol.End(command.end))
        elif isinstance(command, agent.ReportDone):
            self.post(protocol.Done())
        elif isinstance(command, agent.Decline):
            self.post(protocol.Join(evolve(self.record, declined=command.problem)))
        elif isinstance(command, agent.Leave):
            self.post(protocol.Leave())
        elif isinstance(command, agent.Finish):
            self._finish(command)
        return None

    def _start_workers(self, command: agent.StartWorkers) -> agent.Input | None:
        assignment, before = command.assignment, self.workers
        self._judge.starts(self, assignment)
        dead = set() if before is None else before.ended_unnoticed
        self._judge.keeps(self, command.kept, set() if before is None else before.waiting | dead)
        plans = [self._world.plan(self, assignment, rank) for rank in range(assignment.local_world_size)]
        for local_rank, plan in enumerate(plans):
            if plan.outcome is WorkerOutcome.UNSTARTABLE and local_rank not in command.kept:
                self._judge.stops(self)
                return agent.StartFailed(WorkerExited(local_rank, 0, 127, 0, problem="no such program"))
        first = self._world.take_pids(len(plans))
        pids = [first + local_rank for local_rank in range(len(plans))]
        for local_rank in sorted(command.kept):
            assert before is not None
            pids[local_rank] = before.take(local_rank)
            self._timeline.count("worker lives on")
        self.workers = SimulatedWorkers(self._timeline, self, assignment, plans, pids)
        self.workers.running -= dead
        return None

    def _stop_workers(self, command: agent.StopWorkers | agent.ReleaseWorkers) -> agent.Input | None:
        workers = self.workers
        if workers is None or not (workers.running or workers.waiting):
            self.workers = None
            return agent.WorkersGone()
        if isinstance(command, agent.StopWorkers):
            workers.stop(command.signal_number, command.grace_seconds)
        elif workers.running:
            workers.release(command)
        else:
            return agent.WorkersGone(frozenset(workers.waiting))
        return None

    def on_worker_failed(self, round_number: int) -> None:
        self._world.break_collectives(self, round_number)

    def on_workers_succeeded(self, assignment: Assignment) -> None:
        self._judge.succeeds(self, assignment)

    def on_workers_ended(self) -> None:
        self._judge.stops(self)

    def on_workers_stopped(self, kept: frozenset[int]) -> None:
        if not kept:
            self.workers = None
        self.post_to_agent(agent.WorkersGone(kept))

    def on_step(self, assignment: Assignment, local_rank: int) -> None:
        self._judge.takes_step(self, assignment, local_rank)

    def _diagnose(self, command: agent.Diagnose) -> agent.Input:
        assert self.agent.assignment is not None
        failure = describe_failure(command, self.agent.assignment, self.record.host)
        return agent.Diagnosed(failure, None if command.budget is None else self._decide(failure, command.budget))

    def _decide(self, failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
        verdict, self.next_verdict = self.next_verdict, None
        return decide_restart(self._timeline, failure, budget, verdict)

    def _finish(self, finish: agent.Finish) -> None:
        self.finished = finish
        self._judge.finishes(self)
        if self._has_departed:
            self._exit()
        else:
            self.post(protocol.Leave())
            self._timeline.after(_CLOSE_SECONDS, self._exit)

    def _exit(self) -> None:
        if self.is_up:
            self.is_up, self.ended_at = False, self._timeline.now
            self._timeline.note(self.name, "agent", "exits")
