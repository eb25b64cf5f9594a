"""A seeded world in virtual time: the production rendezvous machines on a simulated store.

Everything that happens is an entry in one heap, ordered by virtual time; all randomness comes from one seeded
generator, so a seed replays a run exactly.  The nodes' machines are stepped with the very inputs and answer with the
very commands that the real driver carries out; only the carrying out is simulated here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any, final

from .._record import frozen
from ..records import Assignment, Cause, NodeRecord, RoundEnd, Verdict
from ..rendezvous import _protocol as protocol
from ..rendezvous._machine import initial_state, step
from ..rendezvous._ranks import order_nodes

__all__ = ["Faults", "SimulatedNode", "World"]


@final
@frozen
class Faults:
    """What may go wrong with a store call.  Probabilities; latencies in seconds."""

    latency: tuple[float, float] = (0.0002, 0.002)
    request_lost: float = 0.0  # the call never arrives
    answer_lost: float = 0.0  # it is carried out, but the answer never arrives
    failure_after: float = 1.0  # how long until the caller knows


@final
class SimulatedNode:
    """One node: its machine's state, and a simple agent on top that takes ``stop_seconds`` to stop its workers."""

    def __init__(self, world: World, node: NodeRecord, settings: protocol.Settings, stop_seconds: float) -> None:
        self.world, self.record, self.stop_seconds = world, node, stop_seconds
        self.state = initial_state(settings)
        self.alive, self.paused_until = True, 0.0
        self.waiting: str | None = None
        self.running: Assignment | None = None
        self.history: list[Assignment] = []
        self.ends: list[RoundEnd] = []
        self.closed: RoundEnd | None = None
        self.gave_up: protocol.GaveUp | None = None
        self.calls = self.bytes = 0

    @property
    def name(self) -> str:
        return self.record.node_id

    def feed(self, event: protocol.Input) -> None:
        """Hand the machine an input now (or when the node's pause is over)."""
        if not self.alive:
            return
        if self.paused_until > self.world.now:
            self.world.at(self.paused_until, lambda: self.feed(event))
            return
        result = step(self.state, event, self.world.now)
        if result.reason != self.state.reason:
            self.world.note(self, result.reason)
        self.state = result.state
        for command in result.commands:
            self._execute(command)
        due = protocol.wake_at(self.state)
        if due is not None:
            self.world.at(due, self._tick)

    def _tick(self) -> None:
        due = protocol.wake_at(self.state)
        if due is not None and due <= self.world.now:
            self.feed(protocol.Tick())

    def _execute(self, command: protocol.Command) -> None:
        if isinstance(command, protocol.Call):
            self.calls += 1
            self.bytes += sum(map(len, command.values))
            self.world.carry_out(self, command)
        elif isinstance(command, protocol.Wait):
            self.waiting = command.key
            if command.key is not None:
                self.world.begin_wait(self, command.key)
        elif isinstance(command, protocol.OrderNodes):
            self._soon(protocol.Ordered(tuple(order_nodes(command.nodes, command.previous))))
        elif isinstance(command, protocol.AskRescale):
            worth = command.waiting > 0 and command.summary.group_world_size < command.summary.max_nodes
            self._soon(protocol.Rescaled(worth))
        else:
            self._hear(command)

    def _soon(self, event: protocol.Input) -> None:
        self.world.at(self.world.now, lambda: self.feed(event))

    def _hear(self, output: protocol.Output) -> None:
        if isinstance(output, protocol.Joined):
            self.running = output.assignment
            self.history.append(output.assignment)
            self.world.joined(self, output.assignment)
        elif isinstance(output, protocol.Ended):
            self.ends.append(output.end)
            self.world.at(self.world.now + self.stop_seconds, self._stopped)
        elif isinstance(output, protocol.Closed):
            self.running, self.closed = None, output.end
        elif isinstance(output, protocol.GaveUp):
            self.running, self.gave_up = None, output

    def _stopped(self) -> None:
        self.running = None
        self.feed(protocol.Join(self.record))


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
        self.faults = faults if faults is not None else Faults()
        self.values: dict[str, bytes] = {}
        self.nodes: list[SimulatedNode] = []
        self.transcript: list[str] = []
        self.rounds: dict[int, dict[str, Assignment]] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do ``action`` at virtual ``time``."""
        heapq.heappush(self._heap, (max(time, self.now), next(self._order), action))

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass to ``until``; returns early, with True, once ``stop`` holds."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return stop is not None and stop()

    def add_node(
        self,
        name: str,
        settings: protocol.Settings,
        *,
        role: str = "default",
        local_world_size: int = 1,
        stop_seconds: float = 0.05,
        joins_at: float = 0.0,
    ) -> SimulatedNode:
        """Start a node that joins at ``joins_at``."""
        record = NodeRecord(name, role, local_world_size, host=name, address=f"addr-{name}", port=1 + len(self.nodes))
        node = SimulatedNode(self, record, settings, stop_seconds)
        self.nodes.append(node)
        self.at(joins_at, lambda: node.feed(protocol.Join(record)))
        return node

    def crash(self, node: SimulatedNode) -> None:
        """SIGKILL: the node says nothing any more, and its workers are gone."""
        self.note(node, "crashes")
        node.alive, node.running = False, None

    def pause(self, node: SimulatedNode, seconds: float) -> None:
        """SIGSTOP for ``seconds``."""
        self.note(node, f"pauses for {seconds:g} s")
        node.paused_until = self.now + seconds

    def fail_worker(self, node: SimulatedNode, verdict: Verdict = Verdict.RESTART) -> None:
        """A worker of ``node`` fails now."""
        seat = node.running
        if seat is None:
            return
        used = seat.restart_count + (1 if verdict is Verdict.RESTART else 0)
        node.feed(
            protocol.End(
                RoundEnd(
                    seat.round_number,
                    Cause.EXCEPTION,
                    verdict,
                    f"a worker of {node.name} failed",
                    node.name,
                    node.name,
                    restart_count=used,
                )
            )
        )

    # --- what is checked as it happens ------------------------------------------------------------------------------

    def joined(self, node: SimulatedNode, seat: Assignment) -> None:
        """Safety: one round has one world, with dense ranks, whoever reads it and when."""
        members = self.rounds.setdefault(seat.round_number, {})
        for other in members.values():
            same = (
                other.world_size == seat.world_size
                and other.group_world_size == seat.group_world_size
                and other.master_addr == seat.master_addr
                and other.master_port == seat.master_port
                and other.restart_count == seat.restart_count
            )
            assert same, self.explain(f"two worlds in round {seat.round_number}: {other} and {seat}")
            assert other.group_rank != seat.group_rank, self.explain(f"group rank {seat.group_rank} given twice")
        assert 0 <= seat.group_rank < seat.group_world_size, self.explain("group rank out of range")
        members[node.name] = seat
        self.note(node, f"runs: group rank {seat.group_rank} of {seat.group_world_size}")

    def explain(self, what: str) -> str:
        """Return ``what`` with the seed and the transcript that led to it."""
        return "\n".join([what, f"seed {self.seed}", *self.transcript[-200:]])

    def note(self, node: SimulatedNode, what: str) -> None:
        """Add a line to the transcript."""
        self.transcript.append(f"{self.now:10.4f} {node.name:>8}  {what}")

    # --- the store --------------------------------------------------------------------------------------------------

    def carry_out(self, node: SimulatedNode, call: protocol.Call) -> None:
        """Carry out one call of ``node`` after the network's latency, and answer it, or not."""
        faults = self.faults
        there, back = self.random.uniform(*faults.latency), self.random.uniform(*faults.latency)
        chance = self.random.random()
        failed = protocol.Failed(call, "the simulated network lost it")
        if chance < faults.request_lost:
            self.at(self.now + faults.failure_after, lambda: node.feed(failed))
            return

        def arrive() -> None:
            value = self._apply(call)
            if chance < faults.request_lost + faults.answer_lost:
                self.at(self.now + faults.failure_after, lambda: node.feed(failed))
            else:
                self.at(self.now + back, lambda: node.feed(protocol.Reply(call, value)))

        self.at(self.now + there, arrive)

    def _apply(self, call: protocol.Call) -> Any:
        if call.operation == "add":
            total = int(self.values.get(call.keys[0], b"0")) + call.amount
            if call.amount:
                self._write(call.keys[0], b"%d" % total)
            return total
        if call.operation == "create":
            if call.keys[0] in self.values:
                return False
            self._write(call.keys[0], call.values[0])
            return True
        if call.operation in ("put", "put_many"):
            for key, value in zip(call.keys, call.values, strict=True):
                self._write(key, value)
            return None
        return [self.values.get(key) for key in call.keys]

    def _write(self, key: str, value: bytes) -> None:
        self.values[key] = value
        for node in self.nodes:
            if node.waiting == key:
                self._wake(node, key)

    def begin_wait(self, node: SimulatedNode, key: str) -> None:
        """``node`` begins to wait for ``key``."""
        if key in self.values:
            self._wake(node, key)

    def _wake(self, node: SimulatedNode, key: str) -> None:
        def deliver() -> None:
            if node.waiting == key:
                node.waiting = None
                node.feed(protocol.Appeared(key, self.values[key]))

        self.at(self.now + self.random.uniform(*self.faults.latency), deliver)
