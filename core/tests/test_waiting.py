"""A node that waits says so after seconds and then at growing intervals: for whom, for how long, what was tried."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from attrs import evolve

from quorate import PluginHost, RendezvousTimeoutError, hookimpl
from quorate.agent import _protocol as agent
from quorate.reach import describe_reach, local_endpoint_hint
from quorate.records import NodeRecord, RendezvousWaiting
from quorate.rendezvous import (
    InMemoryStore,
    RendezvousBackend,
    RendezvousParameters,
    Store,
    StoreRendezvousHandler,
    _waiting as waiting_module,
)
from quorate.rendezvous._protocol import Output, Settings, StandingBy, Waiting
from quorate.rendezvous._reporting import Reporting
from quorate.testing._simulation import SimulatedNode, World
from quorate.timeouts import Timeouts

DEADLINE = 30.0


def bounds(low: int, high: int, **timeouts: float) -> Settings:
    return Settings(low, high, Timeouts(last_call_timeout=1.0, **timeouts))


class Reports:
    """What the nodes of a world report, with the time of each report."""

    def __init__(self, *nodes: SimulatedNode, world: World) -> None:
        self.found: list[tuple[float, str, RendezvousWaiting]] = []
        for node in nodes:
            self._listen(node, world)

    def _listen(self, node: SimulatedNode, world: World) -> None:
        post = node.post_to_agent

        def listen(event: agent.Input) -> None:
            if isinstance(event, agent.Waiting):
                self.found.append((world.now, node.name, event.report))
            post(event)

        node.post_to_agent = listen  # type: ignore[method-assign]

    def of(self, name: str) -> list[tuple[float, RendezvousWaiting]]:
        return [(at, report) for at, who, report in self.found if who == name]


def test_the_pauses_between_reports_grow_up_to_two_minutes() -> None:
    world = World(1)
    node = world.add_node("a", bounds(2, 2, join_timeout=600.0))
    reports = Reports(node, world=world)
    world.run(700.0)
    times = [round(at) for at, _ in reports.of("a")]
    assert times[:5] == [3, 8, 16, 32, 64]
    assert times[5:] == [128, 248, 368, 488]
    first = reports.of("a")[0][1]
    assert (first.nodes, first.missing, first.hosts) == (1, 1, ("a",))
    assert first.reason == "waiting for nodes for 3 s: 1 of 2 are here (a), 1 missing; this node gives up in 597 s"


def test_every_node_knows_who_is_here_from_the_one_that_gathers() -> None:
    world = World(2)
    nodes = [world.add_node(name, bounds(4, 4), joins_at=at) for name, at in (("a", 0.0), ("b", 0.5), ("c", 5.0))]
    reports = Reports(*nodes, world=world)
    world.run(20.0)
    for name, hosts in (("a", ("a", "b", "c")), ("b", ("a", "b", "c")), ("c", ("a", "b", "c"))):
        last = reports.of(name)[-1][1]
        assert (last.nodes, last.missing, last.hosts) == (3, 1, hosts)
    late = world.add_node("d", bounds(4, 4), joins_at=world.now)
    assert world.run(world.now + 5.0, lambda: all(node.running is not None for node in [*nodes, late]))


def test_every_node_that_waits_for_a_majority_says_so() -> None:
    world, settings = World(3), evolve(bounds(1, 4), majority=True)
    nodes = [world.add_node(name, settings) for name in "abcd"]
    assert world.run(60.0, lambda: all(node.running is not None for node in nodes)), world.explain("no first round")
    for node in nodes[2:]:
        world.crash(node)
    reports = Reports(*nodes, world=world)
    late = world.add_node("e", settings, joins_at=world.now)
    world.run(world.now + 60.0)
    assert late.running is None
    for name in "ab":
        last = reports.of(name)[-1][1]
        assert "majority=true" in last.reason, last


def test_a_job_that_begins_at_once_reports_nothing_and_writes_no_note() -> None:
    world = World(3)
    nodes = [world.add_node(name, bounds(2, 2)) for name in "ab"]
    reports = Reports(*nodes, world=world)
    world.run(60.0)
    assert reports.found == []
    assert not any("/here" in key for key in world.network.values)


def test_a_store_that_does_not_answer_is_reported_while_workers_run_and_not_afterwards() -> None:
    world = World(4)
    node = world.add_node("a", bounds(1, 1, store_outage_timeout=60.0))
    reports = Reports(node, world=world)
    world.run(10.0)
    world.outage(20.0)
    world.run(100.0)
    found = reports.of("a")
    assert 2 <= len(found) <= 4
    assert "the rendezvous store has not answered for 3 s" in found[0][1].reason
    assert "the workers go on; this node gives up in" in found[0][1].reason
    assert found[-1][0] < 31.0
    assert node.agent.waiting is not None


def test_a_standby_says_that_it_still_stands_by() -> None:
    world = World(5)
    nodes = [world.add_node(name, bounds(2, 2)) for name in "ab"]
    world.run(5.0)
    standby = world.add_node("c", bounds(2, 2), joins_at=world.now)
    reports = Reports(*nodes, standby, world=world)
    world.run(30.0)
    (_, first), *rest = reports.of("c")
    assert rest
    assert first.reason.startswith("on standby for 3 s: round 0 runs with 2 of at most 2 node(s)")
    assert first.left_seconds is None


def test_the_schedule_is_what_the_first_test_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "_FIRST_SECONDS", 9.0)
    world = World(1)
    reports = Reports(world.add_node("a", bounds(2, 2)), world=world)
    world.run(10.0)
    assert [round(at) for at, _ in reports.of("a")] == [9]


@pytest.mark.parametrize("join_timeout", [5.0, 2.0, 0.5])
def test_a_round_of_the_minimum_is_sealed_before_the_join_timeout(join_timeout: float) -> None:
    """A ``last_call_timeout`` that is as long, or longer, would let every node give up."""
    world = World(6)
    patient = Settings(1, 3, Timeouts(join_timeout=join_timeout, last_call_timeout=5.0, connect_timeout=0.5))
    nodes = [world.add_node(name, patient) for name in "ab"]
    assert world.run(join_timeout, lambda: all(node.running is not None for node in nodes)), world.explain("no round")


# --- the endpoint -----------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def test_what_was_tried_is_said_with_its_address(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert describe_reach(f"127.0.0.1:{port}").startswith(f"127.0.0.1:{port} accepts connections")
    assert "[::1]:9 " in describe_reach("[::1]:9")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
        assert describe_reach(closed) == f"{closed} refuses connections (nothing listens there)"
        both = describe_reach(f"http://127.0.0.1:{port},{closed}")
    assert both.count(";") == 1
    assert "'no-such-host.invalid' cannot be looked up" in describe_reach("no-such-host.invalid:1")
    assert describe_reach("/a/folder") == ""
    assert describe_reach(f"127.0.0.2,{closed}") == describe_reach(closed), "nothing is known of an address alone"
    assert describe_reach("") == ""


@pytest.mark.parametrize("endpoint", ["localhost:1", "127.0.0.1:1", "0.0.0.0:1", "[::1]:1", "http://localhost:2379"])
def test_an_endpoint_that_is_everybodys_own_machine_is_explained(endpoint: str) -> None:
    assert "is that machine itself" in local_endpoint_hint(endpoint)
    assert local_endpoint_hint("node1.cluster:29400") == ""


class _Impatient:
    @staticmethod
    @hookimpl
    def quorate_decide_waiting(waiting: RendezvousWaiting) -> bool:
        return waiting.missing < 1


def _handler(host: PluginHost, store: Store, **config: Any) -> StoreRendezvousHandler:
    backend = RendezvousBackend("memory", "in this process", open_store=lambda parameters: store)
    parameters = RendezvousParameters("memory", "localhost:1", "job", 2, 2, **config)
    return StoreRendezvousHandler(parameters, backend, host)


def test_a_plugin_may_decide_that_a_node_has_waited_long_enough() -> None:
    handler = _handler(PluginHost(paths=[], extra=[("impatient", _Impatient())]), InMemoryStore())
    handler.prepare(NodeRecord("a", "default", 1, host="h1"))
    with pytest.raises(Exception, match=r"a plugin decided not to wait any longer: .*1 of 2 are here \(h1\)"):
        handler.next_rendezvous()
    handler.shutdown()


def test_a_report_names_the_endpoint_and_reaches_the_agent() -> None:
    handler = _handler(PluginHost(paths=[]), InMemoryStore())
    seen: SimpleQueue[Waiting] = SimpleQueue()
    handler.subscribe(lambda output: seen.put(output) if isinstance(output, Waiting) else None)
    handler.request_join(NodeRecord("a", "default", 1, host="h1"))
    report = seen.get(timeout=DEADLINE).report
    handler.shutdown()
    assert report.endpoint == "localhost:1"
    assert "On every machine localhost is that machine itself" in report.reason


@pytest.mark.parametrize(
    ("nodes", "problem", "has_store", "is_hinted"),
    [
        (0, "no answer", False, True),
        (0, "no answer", True, False),
        (1, "", True, True),
        (2, "", True, False),
    ],
    ids=["it never answered", "it answered before", "nobody came", "another came"],
)
def test_an_endpoint_is_doubted_until_it_has_proved_right(
    nodes: int, problem: str, has_store: bool, is_hinted: bool
) -> None:
    delivered, came = list[RendezvousWaiting](), threading.Event()

    def deliver(report: RendezvousWaiting) -> None:
        delivered.append(report)
        came.set()

    reporting = Reporting("127.0.0.1:1", True, lambda _: True, deliver, pytest.fail)
    reporting.complete(RendezvousWaiting(0, 3.0, 9.0, nodes, 1, (), problem=problem, reason="waiting"), has_store)
    assert came.wait(DEADLINE)
    assert ("is that machine itself" in delivered[0].reason) is is_hinted


def test_a_store_that_is_still_being_opened_at_the_end_of_the_wait_is_named() -> None:
    """Nothing has failed yet: the first attempt takes longer than the node may wait."""
    ended = threading.Event()

    def open_store(parameters: RendezvousParameters) -> Store:
        ended.wait(DEADLINE)
        return InMemoryStore()

    backend = RendezvousBackend("memory", "in this process", open_store=open_store)
    handler = StoreRendezvousHandler(
        RendezvousParameters("memory", "localhost:1", "job", 1, 2, join_timeout=0.1), backend, PluginHost(paths=[])
    )
    handler.prepare(NodeRecord("a", "default", 1, host="h1"))
    try:
        with pytest.raises(RendezvousTimeoutError, match="make sure that what listens at localhost:1 is the"):
            handler.next_rendezvous()
    finally:
        ended.set()
        handler.shutdown()


def test_a_report_says_what_opening_the_store_waits_for() -> None:
    reported, outputs = threading.Event(), list[Output]()

    def open_store(parameters: RendezvousParameters) -> Store:
        parameters.on_waiting("waiting for the nodes of the last job")
        reported.wait(DEADLINE)
        return InMemoryStore()

    def listen(output: Output) -> None:
        outputs.append(output)
        if isinstance(output, Waiting) and "the last job" in output.report.reason:
            reported.set()

    backend = RendezvousBackend("memory", "in this process", open_store=open_store)
    parameters = RendezvousParameters("memory", "localhost:1", "job", 1, 2, last_call_timeout=0.1)
    handler = StoreRendezvousHandler(parameters, backend, PluginHost(paths=[]))
    handler.subscribe(listen)
    handler.prepare(NodeRecord("a", "default", 1, host="h1"))
    handler.request_join(NodeRecord("a", "default", 1, host="h1"))
    assert reported.wait(DEADLINE)
    handler.shutdown()
    assert StandingBy("waiting for the nodes of the last job") in outputs
    reasons = [output.report.reason for output in outputs if isinstance(output, Waiting)]
    assert re.match("waiting for [0-9]+ s: waiting for the nodes of the last job", reasons[-1])
    assert "has not answered" not in reasons[-1]
