"""A node that declines a round: what it does, and what the sealer does with its reason."""

from __future__ import annotations

from attrs import evolve

from quorate.records import Cause, NodeRecord, RoundEnd, RoundSummary, Verdict
from quorate.rendezvous import _protocol as p
from quorate.rendezvous._gather import Rule, evaluate, live_nodes
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState
from quorate.rendezvous._machine import step
from quorate.rendezvous._protocol import Purpose
from quorate.rendezvous._sealing import _restart_count
from quorate.rendezvous._state import Gathering, PreviousRound, State
from quorate.rendezvous._wire import decode_node, encode
from quorate.timeouts import Timeouts

SETTINGS = p.Settings(2, 2, Timeouts(join_timeout=60.0))
HEALTHY = NodeRecord("healthy", "default", 1, host="alpha")
DECLINED = NodeRecord("declined", "default", 1, host="beta", declined="disk: full")


class Script:
    """One node's machine, fed by hand."""

    def __init__(self) -> None:
        self.state = State(SETTINGS)
        self.commands: list[p.Command] = []

    def feed(self, event: p.Input, now: float = 0.0) -> p.Phase:
        result = step(self.state, event, now)
        self.state, self.commands = result.state, list(result.commands)
        return self.state.phase

    def call(self, purpose: Purpose) -> p.Call:
        (call,) = [command for command in self.commands if isinstance(command, p.Call) and command.purpose is purpose]
        return call

    def reply(self, purpose: Purpose, value: object) -> p.Phase:
        return self.feed(p.Reply(self.call(purpose), value))

    def take_ticket(self) -> None:
        self.feed(p.Join(DECLINED))
        self.reply(Purpose.ROUND_NUMBER, 0)
        self.reply(Purpose.ROUND_STATE, [None, None])
        self.reply(Purpose.TICKET, 1)


def test_it_writes_its_record_and_leaves() -> None:
    script = Script()
    script.take_ticket()
    assert decode_node("key", script.call(Purpose.RECORD).values[0]).declined == "disk: full"
    assert script.reply(Purpose.RECORD, None) is p.Phase.LEFT
    heartbeat = Heartbeat.decode(script.call(Purpose.LEAVING_HEARTBEAT).values[0])
    assert heartbeat.state is HeartbeatState.LEFT
    script.reply(Purpose.LEAVING_HEARTBEAT, None)
    assert script.commands == [p.Left()]


def test_it_still_writes_its_record_when_it_is_shut_down_meanwhile() -> None:
    script = Script()
    script.take_ticket()
    record = script.call(Purpose.RECORD)
    assert script.feed(p.Leave()) is p.Phase.TICKETING
    assert script.feed(p.Reply(record, None)) is p.Phase.LEFT


def test_it_tries_for_two_seconds() -> None:
    script = Script()
    script.feed(p.Join(DECLINED))
    assert script.feed(p.Tick(), 1.9) is p.Phase.LOCATING
    assert script.feed(p.Tick(), 2.1) is p.Phase.FAILED


def gathering(*nodes: NodeRecord, tickets: int | None = None) -> State:
    collected = Gathering(tickets if tickets is not None else len(nodes), dict(enumerate(nodes, 1)))
    return State(SETTINGS, p.Phase.GATHERING, node=HEALTHY, ticket=1, gathering=collected)


def test_it_does_not_count_and_its_reason_is_reported() -> None:
    state = gathering(HEALTHY, DECLINED, evolve(DECLINED, node_id="again", declined="disk: fuller"))
    assert list(live_nodes(state)) == [1]
    readiness = evaluate(state, 0.0)
    assert readiness.rule is Rule.BELOW_MINIMUM
    assert not readiness.rule.allows_sealing
    assert readiness.reason == "1 of 2 nodes joined (alpha), 1 missing; beta does not join: disk: fuller"


def test_the_sealer_reports_it_once() -> None:
    script = Script()
    call = p.Call(Purpose.RECORDS, p.Operation.GET, ("0/node/2",))
    script.state = evolve(gathering(HEALTHY, tickets=2), pending={Purpose.RECORDS: call})
    script.feed(p.Reply(call, [encode(DECLINED)]))
    assert [c for c in script.commands if isinstance(c, p.PeerDeclined)] == [
        p.PeerDeclined("node beta does not join round 0: disk: full")
    ]
    script.feed(p.Tick(), 5.0)
    assert not [c for c in script.commands if isinstance(c, p.PeerDeclined)]


def test_a_member_that_stays_out_after_a_failure_costs_no_restart() -> None:
    """The same holds for every lost node: the failure of its workers was the failure of the node."""
    summary = RoundSummary(0, 2, 2, 1, 2, 0)
    end = RoundEnd(0, Cause.EXIT_CODE, Verdict.RESTART, "rank 1 failed", restart_count=1)
    back = [evolve(node, previous_round=0, previous_rank=rank) for rank, node in enumerate((HEALTHY, DECLINED))]
    state = evolve(gathering(*back), previous=PreviousRound(summary, end))
    assert _restart_count(state) == 0
    all_back = Gathering(2, {1: back[0], 2: evolve(back[1], declined="")})
    assert _restart_count(evolve(state, gathering=all_back)) == 1
