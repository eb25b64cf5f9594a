"""The simulated store and the network to it: latency, loss, broken connections, partitions, outages.

The store is linearizable and never forgets.  What a real store and network may do to a client is done to its messages
here.  What does not live here: the clients (``_simulation_node``), and what must hold (``_simulation_laws``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, final

from attrs import define, frozen

from ..rendezvous import _protocol as protocol
from ..rendezvous._protocol import Operation
from ._simulation_timeline import Timeline

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
    wake_twice: float = 0.0  # one wake-up is delivered twice
    wait_stalled: float = 0.0  # one wake-up comes very late, while calls go through
    stall_seconds: tuple[float, float] = (4.0, 12.0)
    thread_delay: float = 0.0  # the longest time that an input takes from one thread of a node to another

    @property
    def notice_seconds(self) -> float:
        """Within this time a node that is awake and connected learns of a key: a broken wait, its retry, an answer."""
        return self.failure_after + 1.0 + self.wake_delay[1] + 4 * (self.latency[1] + self.thread_delay) + 1.0


class Client(Protocol):
    """A node, as far as the network uses it."""

    name: str
    is_up: bool
    is_troubled: bool
    waiting: Waiting | None

    def note_trouble(self, seconds: float = 0.0) -> None:
        """Note that something other nodes may notice happens to this node, for ``seconds`` from now."""
        ...


@final
@define(eq=False)
class Waiting:
    """One blocking wait of one node; ``finish`` gets the value, or the failure, or neither when interrupted."""

    node: Client
    key: str
    finish: Callable[[bytes | None, protocol.Failed | None], None]
    is_over: bool = False

    def end(self, value: bytes | None, failure: protocol.Failed | None = None) -> None:
        """End the wait, unless it has ended."""
        if not self.is_over:
            self.is_over = True
            self.finish(value, failure)


@final
class Network:
    """What all nodes of a world share.

    Arguments:
        timeline: time, randomness and transcript.
        faults: what goes wrong; may be exchanged at any time.
    """

    def __init__(self, timeline: Timeline, faults: Faults) -> None:
        self.timeline = timeline
        self._faults, self.notice_seconds = faults, faults.notice_seconds
        self.on_write: Callable[[Any, str, bytes], None] = lambda node, key, value: None
        self.clients: list[Client] = []
        self.values: dict[str, bytes] = {}
        self.cut: set[Client] = set()
        self.deaf: set[Client] = set()
        self.outages = 0
        self.is_lost = False
        self._waits: dict[str, list[Waiting]] = {}

    @property
    def faults(self) -> Faults:
        """What goes wrong now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self.notice_seconds = max(self.notice_seconds, faults.notice_seconds)

    # --- reachability -----------------------------------------------------------------------------------------------

    def reaches(self, node: Client) -> bool:
        """Return whether messages between ``node`` and the store arrive now."""
        return not self.outages and node not in self.cut

    def hears(self, node: Client) -> bool:
        """Return whether answers of the store arrive at ``node`` now."""
        return self.reaches(node) and node not in self.deaf

    def deafen(self, node: Client) -> None:
        """What ``node`` sends arrives from now on, and no answer does."""
        self.deaf.add(node)
        node.is_troubled = True
        node.note_trouble()

    def hear_again(self, node: Client) -> None:
        """Answers arrive again."""
        self.deaf.discard(node)
        self._settle(node)
        self._deliver_what_waits()

    def cut_off(self, nodes: Iterable[Client]) -> None:
        """Cut ``nodes`` off; some of their waits notice, the others hang until the network heals."""
        for node in nodes:
            self.cut.add(node)
            node.is_troubled = True
            node.note_trouble()
            self._break_wait(node)

    def heal(self, nodes: Iterable[Client]) -> None:
        """Connect ``nodes`` again; what their connections held back arrives."""
        for node in nodes:
            self.cut.discard(node)
            self._settle(node)
        self._deliver_what_waits()

    def begin_outage(self) -> None:
        """No node reaches the store from now on."""
        self.outages += 1
        for node in self.clients:
            node.is_troubled = True
            node.note_trouble()
            self._break_wait(node)

    def end_outage(self) -> None:
        """The store answers again."""
        self.outages -= 1
        for node in self.clients:
            self._settle(node)
        self._deliver_what_waits()

    def lose(self) -> None:
        """The store and its content are lost."""
        self.is_lost = True
        for node in self.clients:
            if node.waiting is not None:
                node.waiting.end(None, protocol.Failed(None, "the simulated store is gone", lost=True))

    def drop_connections(self, node: Client) -> None:
        """Break the waiting connection of ``node`` at once."""
        if node.waiting is not None:
            node.waiting.end(None, protocol.Failed(None, "connection reset"))

    def _settle(self, node: Client) -> None:
        if self.hears(node):
            node.is_troubled = False
            node.note_trouble()

    def _break_wait(self, node: Client) -> None:
        waiting = node.waiting
        if waiting is None or self.timeline.random.random() < 0.5:
            return

        def notice() -> None:
            if not self.reaches(node):
                waiting.end(None, protocol.Failed(None, "connection timed out"))

        self.timeline.after(self.faults.failure_after, notice)

    def _deliver_what_waits(self) -> None:
        for key in [key for key in self._waits if key in self.values]:
            self._wake_all(key)

    # --- calls ------------------------------------------------------------------------------------------------------

    def send(self, node: Client, call: protocol.Call, done: Callable[[protocol.Input], None]) -> None:
        """Carry out ``call`` after the network's latency; ``done`` gets the reply, or the failure."""
        timeline, faults = self.timeline, self.faults
        there, back = timeline.random.uniform(*faults.latency), timeline.random.uniform(*faults.latency)
        chance = timeline.random.random()

        def fail() -> None:
            node.note_trouble(faults.failure_after)
            timeline.after(faults.failure_after, lambda: done(protocol.Failed(call, _LOST)))

        def arrive() -> None:
            if self.is_lost:
                timeline.after(back, lambda: done(protocol.Failed(call, "the simulated store is gone", lost=True)))
                return
            if not self.reaches(node):
                fail()
                return
            value = self._apply(node, call)
            if chance < faults.request_lost + faults.answer_lost:
                timeline.count("answer lost")
                fail()
            else:
                timeline.after(back, lambda: done(protocol.Reply(call, value)) if self.hears(node) else fail())

        if chance < faults.request_lost:
            timeline.count("request lost")
            fail()
        else:
            timeline.after(there, arrive)

    def _apply(self, node: Client, call: protocol.Call) -> Any:
        if call.operation is Operation.ADD:
            total = int(self.values.get(call.keys[0], b"0")) + call.amount
            if call.amount:
                self._write(node, call.keys[0], b"%d" % total)
            return total
        if call.operation is Operation.CREATE:
            if call.keys[0] in self.values:
                return False
            self._write(node, call.keys[0], call.values[0])
            return True
        if call.operation in (Operation.PUT, Operation.PUT_MANY):
            for key, value in zip(call.keys, call.values, strict=True):
                self._write(node, key, value)
            return None
        values = self.values
        return [values.get(key) for key in call.keys]

    def _write(self, node: Client, key: str, value: bytes) -> None:
        self.on_write(node, key, value)
        self.values[key] = value
        if key in self._waits:
            self._wake_all(key)

    # --- waits ------------------------------------------------------------------------------------------------------

    def wait(self, node: Client, key: str, finish: Callable[[bytes | None, protocol.Failed | None], None]) -> Waiting:
        """Begin a wait of ``node`` for ``key``."""
        waiting = Waiting(node, key, finish)
        self._register(waiting)
        return waiting

    def _register(self, waiting: Waiting) -> None:
        faults = self.faults
        if self.is_lost:
            lost = protocol.Failed(None, "the simulated store is gone", lost=True)
            self.timeline.after(faults.latency[1], lambda: waiting.end(None, lost))
        elif not self.reaches(waiting.node):
            broken = protocol.Failed(None, "cannot connect")
            self.timeline.after(faults.failure_after, lambda: waiting.end(None, broken))
        elif waiting.key in self.values:
            self._wake(waiting)
        else:
            self._waits.setdefault(waiting.key, []).append(waiting)

    def _wake_all(self, key: str) -> None:
        stay: list[Waiting] = []
        for waiting in self._waits.pop(key):
            if waiting.is_over or not waiting.node.is_up:
                continue
            if self.hears(waiting.node):
                self._wake(waiting)
            else:
                stay.append(waiting)
        if stay:
            self._waits[key] = stay

    def _wake(self, waiting: Waiting) -> None:
        timeline, faults = self.timeline, self.faults
        delay = timeline.random.uniform(*faults.latency)
        if faults.wake_delay[1]:
            extra = timeline.random.uniform(*faults.wake_delay)
            delay += extra
            timeline.count("wake-up delayed")
            waiting.node.note_trouble(extra)
        if faults.wait_stalled and timeline.random.random() < faults.wait_stalled:
            timeline.count("wake-up stalled")
            delay += timeline.random.uniform(*faults.stall_seconds)
        if faults.wait_broken and timeline.random.random() < faults.wait_broken:
            timeline.count("wait broken")
            waiting.node.note_trouble(faults.failure_after)
            broken = protocol.Failed(None, "connection reset by peer")
            timeline.after(timeline.random.uniform(0.0, faults.failure_after), lambda: waiting.end(None, broken))
            return

        def deliver() -> None:
            if waiting.is_over:
                return
            if not self.hears(waiting.node):
                self._waits.setdefault(waiting.key, []).append(waiting)
                return
            waiting.end(self.values[waiting.key])

        timeline.after(delay, deliver)
