"""The simulated store and the network to it: latency, loss, broken connections, partitions, outages.

The store itself is linearizable and never forgets; everything that a real one may do to its clients is done here, to
the messages.  What does not live here: who asks (``_simulation_node``), and what must hold (``_simulation_laws``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

from attrs import frozen

from ..rendezvous import _protocol as protocol

if TYPE_CHECKING:
    from ._simulation import World
    from ._simulation_node import SimulatedNode

__all__ = ["Faults", "Network", "Waiting"]

_LOST = "the simulated network lost it"


@final
@frozen
class Faults:
    """What may go wrong between nodes and store, and inside a node.  Probabilities; ranges in seconds."""

    latency: tuple[float, float] = (0.0002, 0.002)
    request_lost: float = 0.0  # the call never arrives
    answer_lost: float = 0.0  # it is carried out, but the answer never arrives
    failure_after: float = 1.0  # how long until the caller knows
    wait_broken: float = 0.0  # instead of waking, the waiting connection breaks
    wake_delay: tuple[float, float] = (0.0, 0.0)  # how much later than an answer a wake-up comes
    wake_twice: float = 0.0  # the machine hears of one key twice
    thread_delay: float = 0.0  # the longest time until one thread of a node hears another

    @property
    def notice_seconds(self) -> float:
        """Until a node that is awake and connected has heard of a key: a broken wait, its retry, the way back."""
        return self.failure_after + 1.0 + self.wake_delay[1] + 4 * (self.latency[1] + self.thread_delay) + 1.0


@final
class Waiting:
    """One blocking wait of one node; ``finish`` is told the value, or what broke, or neither when interrupted."""

    __slots__ = ("finish", "is_over", "key", "node")

    def __init__(
        self, node: SimulatedNode, key: str, finish: Callable[[bytes | None, protocol.Failed | None], None]
    ) -> None:
        self.node, self.key, self.finish, self.is_over = node, key, finish, False

    def end(self, value: bytes | None, trouble: protocol.Failed | None = None) -> None:
        """Tell the node, unless it has been told before."""
        if not self.is_over:
            self.is_over = True
            self.finish(value, trouble)


@final
class Network:
    """What all nodes of a world share."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.values: dict[str, bytes] = {}
        self.cut: set[SimulatedNode] = set()
        self.outages = 0
        self.is_lost = False
        self._waits: dict[str, list[Waiting]] = {}

    # --- reachability -----------------------------------------------------------------------------------------------

    def reaches(self, node: SimulatedNode) -> bool:
        """Return whether messages between ``node`` and the store arrive now."""
        return not self.outages and node not in self.cut

    def cut_off(self, nodes: Iterable[SimulatedNode]) -> None:
        """Cut ``nodes`` off; some of their waits notice, the others hang until the network heals."""
        for node in nodes:
            self.cut.add(node)
            node.is_troubled = True
            node.note_trouble()
            self._break_wait(node)

    def heal(self, nodes: Iterable[SimulatedNode]) -> None:
        """Connect ``nodes`` again; what their connections held back arrives."""
        for node in nodes:
            self.cut.discard(node)
            self._settle(node)
        self._deliver_what_waits()

    def begin_outage(self) -> None:
        """Nobody reaches the store from now on."""
        self.outages += 1
        for node in self.world.nodes:
            node.is_troubled = True
            node.note_trouble()
            self._break_wait(node)

    def end_outage(self) -> None:
        """The store answers again."""
        self.outages -= 1
        for node in self.world.nodes:
            self._settle(node)
        self._deliver_what_waits()

    def lose(self) -> None:
        """The store and what it held are gone for good."""
        self.is_lost = True
        for node in self.world.nodes:
            if node.waiting is not None:
                node.waiting.end(None, protocol.Failed(None, "the simulated store is gone", lost=True))

    def drop_connections(self, node: SimulatedNode) -> None:
        """Break the waiting connection of ``node`` at once."""
        if node.waiting is not None:
            node.waiting.end(None, protocol.Failed(None, "connection reset"))

    def _settle(self, node: SimulatedNode) -> None:
        if self.reaches(node):
            node.is_troubled = False
            node.note_trouble()

    def _break_wait(self, node: SimulatedNode) -> None:
        waiting = node.waiting
        if waiting is None or self.world.random.random() < 0.5:
            return

        def notice() -> None:
            if not self.reaches(node):
                waiting.end(None, protocol.Failed(None, "connection timed out"))

        self.world.after(self.world.faults.failure_after, notice)

    def _deliver_what_waits(self) -> None:
        for key in [key for key in self._waits if key in self.values]:
            self._wake_all(key)

    # --- calls ------------------------------------------------------------------------------------------------------

    def send(self, node: SimulatedNode, call: protocol.Call, done: Callable[[protocol.Input], None]) -> None:
        """Carry out ``call`` after the network's latency, and tell ``done`` the answer, or that there is none."""
        world, faults = self.world, self.world.faults
        there, back = world.random.uniform(*faults.latency), world.random.uniform(*faults.latency)
        chance = world.random.random()

        def fail() -> None:
            node.note_trouble(faults.failure_after)
            world.after(faults.failure_after, lambda: done(protocol.Failed(call, _LOST)))

        def arrive() -> None:
            if self.is_lost:
                world.after(back, lambda: done(protocol.Failed(call, "the simulated store is gone", lost=True)))
                return
            if not self.reaches(node):
                fail()
                return
            value = self._apply(node, call)
            if chance < faults.request_lost + faults.answer_lost:
                world.count("answer lost")
                fail()
            else:
                world.after(back, lambda: done(protocol.Reply(call, value)) if self.reaches(node) else fail())

        if chance < faults.request_lost:
            world.count("request lost")
            fail()
        else:
            world.after(there, arrive)

    def _apply(self, node: SimulatedNode, call: protocol.Call) -> Any:
        if call.operation == "add":
            total = int(self.values.get(call.keys[0], b"0")) + call.amount
            if call.amount:
                self._write(node, call.keys[0], b"%d" % total)
            return total
        if call.operation == "create":
            if call.keys[0] in self.values:
                return False
            self._write(node, call.keys[0], call.values[0])
            return True
        if call.operation in ("put", "put_many"):
            for key, value in zip(call.keys, call.values, strict=True):
                self._write(node, key, value)
            return None
        values = self.values
        return [values.get(key) for key in call.keys]

    def _write(self, node: SimulatedNode, key: str, value: bytes) -> None:
        self.world.judge.writes(node, key, value)
        self.values[key] = value
        if key in self._waits:
            self._wake_all(key)

    # --- waits ------------------------------------------------------------------------------------------------------

    def wait(
        self, node: SimulatedNode, key: str, finish: Callable[[bytes | None, protocol.Failed | None], None]
    ) -> Waiting:
        """Begin a wait of ``node`` for ``key``."""
        waiting = Waiting(node, key, finish)
        self._register(waiting)
        return waiting

    def _register(self, waiting: Waiting) -> None:
        faults = self.world.faults
        if self.is_lost:
            lost = protocol.Failed(None, "the simulated store is gone", lost=True)
            self.world.after(faults.latency[1], lambda: waiting.end(None, lost))
        elif not self.reaches(waiting.node):
            broken = protocol.Failed(None, "cannot connect")
            self.world.after(faults.failure_after, lambda: waiting.end(None, broken))
        elif waiting.key in self.values:
            self._wake(waiting)
        else:
            self._waits.setdefault(waiting.key, []).append(waiting)

    def _wake_all(self, key: str) -> None:
        stay: list[Waiting] = []
        for waiting in self._waits.pop(key):
            if waiting.is_over or not waiting.node.is_up:
                continue
            if self.reaches(waiting.node):
                self._wake(waiting)
            else:
                stay.append(waiting)
        if stay:
            self._waits[key] = stay

    def _wake(self, waiting: Waiting) -> None:
        world, faults = self.world, self.world.faults
        delay = world.random.uniform(*faults.latency)
        if faults.wake_delay[1]:
            extra = world.random.uniform(*faults.wake_delay)
            delay += extra
            world.count("wake-up delayed")
            waiting.node.note_trouble(extra)
        if faults.wait_broken and world.random.random() < faults.wait_broken:
            world.count("wait broken")
            waiting.node.note_trouble(faults.failure_after)
            broken = protocol.Failed(None, "connection reset by peer")
            world.after(world.random.uniform(0.0, faults.failure_after), lambda: waiting.end(None, broken))
            return

        def deliver() -> None:
            if waiting.is_over:
                return
            if not self.reaches(waiting.node):
                self._waits.setdefault(waiting.key, []).append(waiting)
                return
            waiting.end(self.values[waiting.key])

        world.after(delay, deliver)
