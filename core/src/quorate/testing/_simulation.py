"""A seeded world in virtual time: the production machines of rendezvous and agents on a simulated store.

Everything that happens is an entry in one heap, ordered by virtual time; all randomness comes from one seeded
generator, so a seed replays a run exactly.  The nodes' machines are stepped with the very inputs and answer with the
very commands of production; only the carrying out is simulated (``_simulation_node``, ``_network``, ``_workers``).
The laws of ``_simulation_laws`` are checked as things happen.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import final

from ..agent import _protocol as agent
from ..records import Assignment, NodeRecord, Verdict
from ..rendezvous import _protocol as protocol
from ._simulation_laws import Judge, SimulationError
from ._simulation_network import Faults, Network
from ._simulation_node import SimulatedNode
from ._simulation_workers import Plan

__all__ = ["Faults", "Plan", "SimulatedNode", "SimulationError", "World"]

_LONGEST_TRANSCRIPT = 20_000


@final
class World:
    """The simulated store, the network to it, and the nodes.

    Arguments:
        seed: of all randomness.
        faults: what goes wrong between nodes and store; may be exchanged while the world runs.
    """

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.seed = seed
        self._faults = faults if faults is not None else Faults()
        self.notice_seconds, self.lease_seconds = self._faults.notice_seconds, 0.0
        self.all_paused_at = -1e9
        self.interrupt_seconds = 0.0  # how long a store may take to interrupt a wait
        self.connects_workers = False  # the end of one worker breaks the others, as a collective does
        self.plan: Callable[[SimulatedNode, Assignment, int], Plan] = lambda node, assignment, local_rank: Plan()
        self.nodes: list[SimulatedNode] = []
        self.by_name: dict[str, SimulatedNode] = {}
        self.transcript: list[str] = []
        self.counts: Counter[str] = Counter()
        self.network = Network(self)
        self.judge = Judge(self)
        self._told: dict[str, str] = {}
        self._pids = 1
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do ``action`` at virtual ``time``."""
        heapq.heappush(self._heap, (max(time, self.now), next(self._order), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ``action`` in ``seconds``."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), action))

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass to ``until``; returns early, with True, once ``stop`` holds."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, action = pop(heap)
            action()
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return stop is not None and stop()

    # --- nodes --------------------------------------------------------------------------------------------------------

    def add_node(
        self,
        name: str,
        settings: protocol.Settings,
        *,
        role: str = "default",
        local_world_size: int = 1,
        joins_at: float = 0.0,
        rank_hint: int | None = None,
        clock: tuple[float, float] = (0.0, 1.0),
        max_restarts: int = 3,
        exit_barrier_timeout: float = 300.0,
        grace_seconds: float = 30.0,
    ) -> SimulatedNode:
        """Start a node whose agent begins at ``joins_at``; ``clock`` is its offset in seconds and its rate."""
        record = NodeRecord(name, role, local_world_size, host=name, address=f"addr-{name}", rank_hint=rank_hint)
        node = SimulatedNode(self, record, settings, clock, max_restarts, exit_barrier_timeout, grace_seconds)
        self.nodes.append(node)
        self.by_name[name] = node
        self.lease_seconds = max(self.lease_seconds, settings.lease_timeout)
        self.at(joins_at, lambda: node.tell_agent(agent.Begin()))
        return node

    def take_pids(self, number: int) -> int:
        """Return the first of ``number`` process ids."""
        first, self._pids = self._pids, self._pids + number
        return first

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    @property
    def faults(self) -> Faults:
        """What goes wrong between nodes and store now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self.notice_seconds = max(self.notice_seconds, faults.notice_seconds)

    def crash(self, node: SimulatedNode) -> None:
        """SIGKILL: the node says nothing any more, and its workers are gone."""
        if not node.is_up:
            return
        self.note(node, "FAULT", "crashes")
        self.count("crash")
        node.alive = node.is_up = False
        node.ended_at = self.now
        if node.workers is not None:
            node.workers.kill()
        self.judge.stops(node)

    def pause_all(self, seconds: float) -> None:
        """SIGSTOP of all agents at once, for ``seconds`` and a little, as if a cluster were suspended and resumed."""
        self.all_paused_at = self.now
        for node in self.nodes:
            if node.is_up:
                self.pause(node, seconds + self.random.uniform(0.0, 0.5), alone=False)

    def pause(self, node: SimulatedNode, seconds: float, alone: bool = True) -> None:
        """SIGSTOP of the agent for ``seconds``; its workers go on."""
        self.note(node, "FAULT", f"pauses for {seconds:g} s")
        self.count("pause")
        node.paused_until = max(node.paused_until, self.now + seconds)
        node.note_trouble(seconds, alone)

    def cut(self, nodes: Iterable[SimulatedNode], seconds: float) -> None:
        """Cut ``nodes`` off from the store for ``seconds``."""
        cut = [node for node in nodes if node not in self.network.cut]
        for node in cut:
            self.note(node, "FAULT", f"is cut off from the store for {seconds:g} s")
            self.count("partition")
        self.network.cut_off(cut)

        def heal() -> None:
            for node in cut:
                self.note(node, "FAULT", "reaches the store again")
            self.network.heal(cut)

        self.after(seconds, heal)

    def outage(self, seconds: float) -> None:
        """Nobody reaches the store for ``seconds``."""
        self.remark(f"FAULT: nobody reaches the store for {seconds:g} s")
        self.count("outage")
        self.network.begin_outage()

        def end() -> None:
            self.remark("the store answers again")
            self.network.end_outage()

        self.after(seconds, end)

    def lose_store(self) -> None:
        """The store and all that it held are gone."""
        self.remark("FAULT: the store is gone for good")
        self.count("store lost")
        self.network.lose()

    def drop_connections(self, node: SimulatedNode) -> None:
        """The waiting connection of ``node`` breaks."""
        self.note(node, "FAULT", "loses its connections")
        self.count("connection lost")
        node.note_trouble()
        self.network.drop_connections(node)

    def fail_worker(self, node: SimulatedNode, verdict: Verdict | None = None) -> None:
        """A worker of ``node`` fails now; ``verdict`` is what the policy will answer, instead of the default one."""
        self._act(node, "fail", verdict)

    def hang_worker(self, node: SimulatedNode) -> None:
        """A worker of ``node`` hangs, and its watchdog says so."""
        self._act(node, "hang")

    def succeed(self, node: SimulatedNode) -> None:
        """All workers of ``node`` succeed now."""
        if node.workers is not None:
            for local_rank in sorted(node.workers.running):
                node.workers.act("succeed", local_rank)

    def _act(self, node: SimulatedNode, outcome: str, verdict: Verdict | None = None) -> None:
        if node.workers is not None and node.workers.running and node.is_up:
            node.next_verdict = verdict
            self.count(f"worker {outcome}s")
            node.workers.act(outcome, min(node.workers.running))

    def signal(self, node: SimulatedNode, number: int = 15) -> None:
        """The agent of ``node`` is asked to stop."""
        self.note(node, "FAULT", f"is sent signal {number}")
        self.count("signal")
        node.tell_agent(agent.SignalReceived(number))

    def make_unfit(self, node: SimulatedNode) -> None:
        """A health check of ``node`` fails."""
        self.note(node, "FAULT", "is found declined")
        self.count("declined")
        node.problems = ("its disk is full",)
        node.tell_agent(agent.NodeUnhealthy(*node.problems))

    def break_collectives(self, node: SimulatedNode, round_number: int) -> None:
        """A worker of ``node`` has ended: those of others lose their connections to it."""
        if not self.connects_workers:
            return
        for other in self.nodes:
            workers = other.workers
            if other is not node and workers is not None and workers.assignment.round_number == round_number:
                for local_rank in sorted(workers.running):
                    self.after(self.random.uniform(0.001, 0.3), _breaking(workers.act, local_rank))

    def calm(self) -> None:
        """No more faults from now on: the network heals, everyone wakes, and workers just run."""
        self.faults = Faults()
        self.plan = lambda node, assignment, local_rank: Plan()
        self.connects_workers = False
        for node in self.nodes:
            if node.workers is not None:
                node.workers.calm()

    # --- what is told -------------------------------------------------------------------------------------------------

    def count(self, kind: str) -> None:
        """Count a fault."""
        self.counts[kind] += 1

    def explain(self, what: str) -> str:
        """Return ``what`` with the seed and the transcript that led to it."""
        return "\n".join([what, f"seed {self.seed}", *self.transcript[-200:]])

    def is_new(self, node: SimulatedNode, reason: str) -> bool:
        """Return whether ``reason`` says more than the last one did; running numbers do not count."""
        bare = re.sub(r"[\d.]+ s more", "", reason)
        old, self._told[node.name] = self._told.get(node.name), bare
        return old != bare

    def note(self, node: SimulatedNode, subject: str, what: str) -> None:
        """Add a line about ``node`` to the transcript."""
        if len(self.transcript) < _LONGEST_TRANSCRIPT:
            self.transcript.append(f"{self.now:10.4f}  {node.name:<8} {subject:<10} {what}")

    def remark(self, what: str) -> None:
        """Add a line about the store or the world to the transcript."""
        self.transcript.append(f"{self.now:10.4f}  {'-':<8} {'store':<10} {what}")


def _breaking(act: Callable[[str, int], None], local_rank: int) -> Callable[[], None]:
    return lambda: act("break", local_rank)
