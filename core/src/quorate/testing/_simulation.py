"""A seeded world in virtual time: the production machines of rendezvous and agents on a simulated store.

The nodes' machines take the inputs of production and answer with its commands; only carrying these out is simulated
(``_simulation_node``, ``_simulation_network``, ``_simulation_workers``).  The laws of ``_simulation_laws`` are checked
as things happen.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from functools import partial
from typing import final

from ..agent import _protocol as agent
from ..records import Assignment, NodeRecord, Verdict
from ..rendezvous import _protocol as protocol
from ._simulation_law import Law, SimulationError
from ._simulation_laws import Judge
from ._simulation_network import Faults, Network
from ._simulation_node import SimulatedNode
from ._simulation_timeline import Timeline
from ._simulation_workers import Plan, WorkerOutcome

__all__ = ["Faults", "Law", "Plan", "SimulatedNode", "SimulationError", "WorkerOutcome", "World"]


@final
class World(Timeline):
    """The simulated store, the network to it, and the nodes.

    Arguments:
        seed: of all randomness.
        faults: what goes wrong between nodes and store; may be exchanged while the world runs.
    """

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        super().__init__(seed)
        self.timeline: Timeline = self
        self.interrupt_seconds = 0.0  # how long a store may take to interrupt a wait
        self.connects_workers = False  # the end of one worker breaks the others, as a collective does
        self.plan: Callable[[SimulatedNode, Assignment, int], Plan] = lambda node, assignment, local_rank: Plan()
        self.nodes: list[SimulatedNode] = []
        self.network = Network(self, faults if faults is not None else Faults())
        self.judge = Judge(self, self.network)
        self.network.on_write = self.judge.writes
        self._pids = 1
        self._last_pause_ends_at = -1e9

    # --- nodes --------------------------------------------------------------------------------------------------------

    def add_node(
        self,
        name: str,
        settings: protocol.Settings,
        *,
        local_world_size: int = 1,
        joins_at: float = 0.0,
        rank_hint: int | None = None,
        clock: tuple[float, float] = (0.0, 1.0),
        max_restarts: int = 3,
        grace_seconds: float = 30.0,
    ) -> SimulatedNode:
        """Start a node whose agent begins at ``joins_at``; ``clock`` is its offset in seconds and its rate."""
        record = NodeRecord(name, "default", local_world_size, host=name, address=f"addr-{name}", rank_hint=rank_hint)
        node = SimulatedNode(self, record, settings, clock, max_restarts, grace_seconds)
        self.nodes.append(node)
        self.network.clients.append(node)
        self.judge.add(node)
        self.at(joins_at, lambda: self._begin(node))
        return node

    def _begin(self, node: SimulatedNode) -> None:
        """Start the agent.  Nodes that pause are from now on not paused as all are: this one sees them stand still."""
        if self._last_pause_ends_at > self.now:
            for other in self.nodes:
                if other is not node and other.is_up and other.paused_until > self.now:
                    other.note_trouble(other.paused_until - self.now, alone=True)
        node.post_to_agent(agent.Begin())

    def take_pids(self, number: int) -> int:
        """Return the first of ``number`` process ids."""
        first, self._pids = self._pids, self._pids + number
        return first

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    @property
    def faults(self) -> Faults:
        """What goes wrong between nodes and store now."""
        return self.network.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self.network.faults = faults

    def crash(self, node: SimulatedNode) -> None:
        """SIGKILL: the node does nothing any more, and its workers are gone."""
        if not node.is_up:
            return
        self.note(node.name, "FAULT", "crashes")
        self.count("crash")
        node.alive = node.is_up = False
        node.ended_at = self.now
        if node.workers is not None:
            node.workers.kill()
        self.judge.stops(node)

    def pause_all(self, seconds: float) -> None:
        """SIGSTOP of all agents at once, for ``seconds`` and a little, as if a cluster were suspended and resumed."""
        self.judge.all_paused_at = self.now
        for node in self.nodes:
            if node.is_up:
                self.pause(node, seconds + self.random.uniform(0.0, 0.5), alone=False)

    def pause(self, node: SimulatedNode, seconds: float, alone: bool = True) -> None:
        """SIGSTOP of the agent for ``seconds``; its workers continue."""
        self.note(node.name, "FAULT", f"pauses for {seconds:g} s")
        self.count("pause")
        node.paused_until = max(node.paused_until, self.now + seconds)
        self._last_pause_ends_at = max(self._last_pause_ends_at, node.paused_until)
        node.note_trouble(seconds, alone)

    def cut(self, nodes: Iterable[SimulatedNode], seconds: float) -> None:
        """Cut ``nodes`` off from the store for ``seconds``."""
        cut = [node for node in nodes if node not in self.network.cut]
        for node in cut:
            self.note(node.name, "FAULT", f"is cut off from the store for {seconds:g} s")
            self.count("partition")
        self.network.cut_off(cut)

        def heal() -> None:
            for node in cut:
                self.note(node.name, "FAULT", "reaches the store again")
            self.network.heal(cut)

        self.after(seconds, heal)

    def deafen(self, node: SimulatedNode, seconds: float) -> None:
        """No answer of the store reaches ``node`` for ``seconds``; what it sends arrives."""
        self.note(node.name, "FAULT", f"gets no answers for {seconds:g} s")
        self.count("deaf")
        self.network.deafen(node)

        def end() -> None:
            self.note(node.name, "FAULT", "gets answers again")
            self.network.hear_again(node)

        self.after(seconds, end)

    def outage(self, seconds: float) -> None:
        """No node reaches the store for ``seconds``."""
        self.remark(f"FAULT: no node reaches the store for {seconds:g} s")
        self.count("outage")
        self.network.begin_outage()

        def end() -> None:
            self.remark("the store answers again")
            self.network.end_outage()

        self.after(seconds, end)

    def lose_store(self) -> None:
        """The store and its content are lost."""
        self.remark("FAULT: the store is lost")
        self.count("store lost")
        self.network.lose()

    def drop_connections(self, node: SimulatedNode) -> None:
        """The waiting connection of ``node`` breaks."""
        self.note(node.name, "FAULT", "loses its connections")
        self.count("connection lost")
        node.note_trouble()
        self.network.drop_connections(node)

    def fail_worker(self, node: SimulatedNode, verdict: Verdict | None = None) -> None:
        """A worker of ``node`` fails now; ``verdict``, if given, is the policy's answer instead of the default one."""
        self._act(node, WorkerOutcome.FAIL, verdict)

    def hang_worker(self, node: SimulatedNode) -> None:
        """A worker of ``node`` hangs, and its watchdog reports it."""
        self._act(node, WorkerOutcome.HANG)

    def succeed(self, node: SimulatedNode) -> None:
        """All workers of ``node`` succeed now."""
        if node.workers is not None:
            for local_rank in sorted(node.workers.running):
                node.workers.act(WorkerOutcome.SUCCEED, local_rank)

    def _act(self, node: SimulatedNode, outcome: WorkerOutcome, verdict: Verdict | None = None) -> None:
        if node.workers is not None and node.workers.running and node.is_up:
            node.next_verdict = verdict
            self.count(f"worker {outcome.value}s")
            node.workers.act(outcome, min(node.workers.running))

    def signal(self, node: SimulatedNode, number: int = signal.SIGTERM) -> None:
        """The agent of ``node`` is asked to stop."""
        self.note(node.name, "FAULT", f"is sent signal {int(number)}")
        self.count("signal")
        node.post_to_agent(agent.SignalReceived(int(number)))

    def make_unhealthy(self, node: SimulatedNode) -> None:
        """A health check of ``node`` fails."""
        self.note(node.name, "FAULT", "becomes unhealthy")
        self.count("node unhealthy")
        node.problems = ("its disk is full",)
        node.post_to_agent(agent.NodeUnhealthy(*node.problems))

    def break_collectives(self, node: SimulatedNode, round_number: int) -> None:
        """A worker of ``node`` has ended: the workers of other nodes lose their connections to it."""
        if not self.connects_workers:
            return
        for other in self.nodes:
            workers = other.workers
            if other is not node and workers is not None and workers.assignment.round_number == round_number:
                for local_rank in sorted(workers.running):
                    self.after(self.random.uniform(0.001, 0.3), partial(workers.act, WorkerOutcome.BREAK, local_rank))

    def freeze(self, node: SimulatedNode, freezes: bool) -> None:
        """Have the workers of ``node`` stand still, or go on."""
        if node.workers is not None:
            (node.workers.freeze if freezes else node.workers.thaw)()
        (self.judge.freezes if freezes else self.judge.thaws)(node)

    def end_faults(self) -> None:
        """No more faults from now on: the network works, and workers just run."""
        self.faults = Faults()
        self.plan = lambda node, assignment, local_rank: Plan()
        self.connects_workers = False
        for node in self.nodes:
            if node.workers is not None:
                node.workers.cancel_plans()
