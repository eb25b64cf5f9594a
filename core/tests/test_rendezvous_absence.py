"""A node that comes only to tell why it does not join: what it does, and what the one that gathers makes of it."""

from __future__ import annotations

from attrs import evolve

from quorate.records import Cause, NodeRecord, RoundEnd, RoundSummary, Verdict
from quorate.rendezvous import _protocol as p
from quorate.rendezvous._gather import evaluate, live_nodes
from quorate.rendezvous._liveness import Beat, BeatState
from quorate.rendezvous._machine import initial_state, step
from quorate.rendezvous._sealing import _restart_count
from quorate.rendezvous._wire import decode_node, encode

SETTINGS = p.Settings(2, 2, join_timeout=60.0)
FIT = NodeRecord("fit", "default", 1, host="alpha")
UNFIT = NodeRecord("declined", "default", 1, host="beta", declined="disk: full")


class Script:
    """One node's machine, fed by hand."""

    def __init__(self) -> None:
        self.state = initial_state(SETTINGS)
        self.told: list[p.Command] = []

    def feed(self, event: p.Input, now: float = 0.0) -> p.Phase:
        result = step(self.state, event, now)
        self.state, self.told = result.state, list(result.commands)
        return self.state.phase

    def call(self, tag: str) -> p.Call:
        (call,) = [command for command in self.told if isinstance(command, p.Call) and command.tag == tag]
        return call

    def reply(self, tag: str, value: object) -> p.Phase:
        return self.feed(p.Reply(self.call(tag), value))

    def take_ticket(self) -> None:
        self.feed(p.Join(UNFIT))
        self.reply("count", 0)
        self.reply("look_round", [None, None])
        self.reply("ticket", 1)


def test_it_writes_its_record_and_is_gone() -> None:
    script = Script()
    script.take_ticket()
    assert decode_node("key", script.call("record").values[0]).declined == "disk: full"
    assert script.reply("record", None) is p.Phase.LEFT
    beat = Beat.decode(script.call("left").values[0])
    assert beat.state is BeatState.LEFT
    script.reply("left", None)
    assert script.told == [p.Gone()]


def test_being_shut_down_meanwhile_does_not_silence_it() -> None:
    script = Script()
    script.take_ticket()
    record = script.call("record")
    assert script.feed(p.Leave()) is p.Phase.TICKETING
    assert script.feed(p.Reply(record, None)) is p.Phase.LEFT


def test_it_has_two_seconds() -> None:
    script = Script()
    script.feed(p.Join(UNFIT))
    assert script.feed(p.Tick(), 1.9) is p.Phase.LOCATING
    assert script.feed(p.Tick(), 2.1) is p.Phase.FAILED


def gathering(*nodes: NodeRecord, **changes: object) -> p.State:
    state = p.State(SETTINGS, p.Phase.GATHERING, FIT, ticket=1, tickets=len(nodes))
    return evolve(state, nodes=dict(enumerate(nodes, 1)), **changes)


def test_it_does_not_count_and_its_reason_is_told() -> None:
    state = gathering(FIT, UNFIT, evolve(UNFIT, node_id="again", declined="disk: fuller"))
    assert list(live_nodes(state)) == [1]
    readiness = evaluate(state, 0.0)
    assert not readiness.ready
    assert readiness.reason == "waiting for 1 of 2 nodes; here: alpha; beta does not join: disk: fuller"


def test_the_one_that_gathers_tells_of_it_once() -> None:
    state = gathering(FIT)
    script = Script()
    script.state = evolve(state, tickets=2)
    script.state = evolve(script.state, pending={"records": p.Call("records", "get", ("0/node/2",))})
    script.feed(p.Reply(script.state.pending["records"], [encode(UNFIT)]))
    assert [c for c in script.told if isinstance(c, p.NodeDeclined)] == [
        p.NodeDeclined("node beta does not join round 0: disk: full")
    ]
    script.feed(p.Tick(), 5.0)
    assert not [c for c in script.told if isinstance(c, p.NodeDeclined)]


def test_a_member_that_stays_out_after_a_failure_costs_no_restart() -> None:
    """As with every node that is lost: its workers' failure was the node's."""
    summary = RoundSummary(0, 2, 2, 1, 2, 0)
    end = RoundEnd(0, Cause.EXIT_CODE, Verdict.RESTART, "rank 1 failed", restart_count=1)
    back = [evolve(node, previous_round=0, previous_rank=rank) for rank, node in enumerate((FIT, UNFIT))]
    state = gathering(*back, previous=p.Previous(summary, end))
    assert _restart_count(state) == 0
    assert _restart_count(evolve(state, nodes={1: back[0], 2: evolve(back[1], declined="")})) == 1
