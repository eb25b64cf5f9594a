"""The diagrams in ``docs/architecture.md`` show the machines: what is drawn happens, what happens is drawn.

The agent's machine is led through all its states by all its inputs, and what it does is what its table says; the
rendezvous machines live in simulated worlds with crashes, pauses and lost messages.  Every change of phase is collected
with the input that led to it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import evolve

from quorate.agent import _machine as agent, _protocol as agent_protocol
from quorate.agent._state import Settings as AgentSettings, State as AgentState
from quorate.cut_off import WhenCutOff
from quorate.errors import FailureKind
from quorate.records import (
    Assignment,
    Cause,
    FailureRecord,
    RestartDecision,
    RoundEnd,
    Verdict,
    WorkerExited,
)
from quorate.rendezvous import _machine as rendezvous
from quorate.rendezvous._protocol import Failed, Input, Leave, Phase, Purpose, Reply, StopWaiting, Tick
from quorate.rendezvous._state import State, Step
from quorate.testing._simulation_law import SimulationError
from quorate.testing._simulation_laws import Judge, Member
from quorate.testing._simulation_scenario import make_scenario, play

PAGE = Path(__file__).resolve().parent.parent / "docs/architecture.md"
Edge = tuple[str, str, str]


def drawn(heading: str) -> set[Edge]:
    """Return ``(from, to, input)`` of the diagram under a heading."""
    _, _, section = PAGE.read_text().partition(f"\n## {heading}\n")
    diagram = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", section, re.DOTALL)
    assert diagram, f"no diagram under {heading!r}"
    arrows = re.findall(r"^ +(\w+) --> (\w+): (.*)$", diagram[1], re.MULTILINE)
    return {(source, target, name.strip()) for source, target, names in arrows for name in names.split(",")}


# --- the agent ------------------------------------------------------------------------------------------------------

ASSIGNMENT = Assignment(0, "n", "r", 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1)
GOOD, BAD = WorkerExited(0, 1, 0, 0), WorkerExited(0, 1, 1, 0)
FAILURE = FailureRecord(0, 0, 1, 1, Cause.EXIT_CODE, "", 0)


def agent_inputs() -> list[agent_protocol.Input]:
    ends = {verdict: RoundEnd(0, Cause.EXIT_CODE, verdict, "why") for verdict in Verdict}
    return [
        agent_protocol.Begin(),
        agent_protocol.NodeChecked(),
        agent_protocol.NodeChecked(("disk: full",)),
        agent_protocol.NodeUnhealthy("disk: full"),
        agent_protocol.RoundJoined(ASSIGNMENT),
        agent_protocol.StandingBy("full"),
        *(
            agent_protocol.JobClosed(end) if verdict.is_terminal else agent_protocol.RoundEnded(end)
            for verdict, end in ends.items()
        ),
        agent_protocol.RendezvousFailed(FailureKind.LOST, "gone"),
        agent_protocol.WorkersExited((GOOD,)),
        agent_protocol.WorkersExited((BAD,)),
        agent_protocol.StartFailed(BAD),
        agent_protocol.WorkerHung(0, 1, "no progress"),
        agent_protocol.StacksDumped(),
        *(agent_protocol.Diagnosed(FAILURE, RestartDecision(verdict)) for verdict in (Verdict.RESTART, Verdict.FAILED)),
        agent_protocol.WorkersGone(),
        agent_protocol.WorkersGone(frozenset({0})),
        agent_protocol.SignalReceived(15),
        agent_protocol.PreemptionWarned(10, 5.0, "told to stop"),
        agent_protocol.Clock(due=True),
        agent_protocol.CutOff("no answer"),
        agent_protocol.CannotFreeze("no such ability"),
        agent_protocol.Reconnected(),
    ]


def table_of_the_agent() -> set[Edge]:
    return {
        (phase.value, target.value, event.__name__)
        for phase, row in agent.TABLE.items()
        for event, entry in row.items()
        for target in entry.targets
    }


def test_diagram_of_the_agent_is_its_table() -> None:
    assert table_of_the_agent() == drawn("The agent's machine")


def test_the_agent_leaves_each_phase_for_those_that_its_table_lists() -> None:
    inputs, found = agent_inputs(), set[Edge]()
    fresh = [
        AgentState(AgentSettings(1, timeout, release_timeout=5.0, when_cut_off=policy))
        for timeout, policy in ((0.0, WhenCutOff.FREEZE), (300.0, WhenCutOff.FREEZE), (0.0, WhenCutOff.STOP))
    ]
    seen = set(fresh)
    while fresh:
        state = fresh.pop()
        for event in inputs:
            after = agent.step(state, event, 0.0).state
            if after.phase is not state.phase:
                found.add((state.phase.value, after.phase.value, type(event).__name__))
            # What is only told to people, and what only grows, does not make another state.
            a_round = after.round and evolve(after.round, failures=())
            after = evolve(after, reason="", history=(), round=a_round)
            if after not in seen:
                seen.add(after)
                fresh.append(after)
    assert found == table_of_the_agent()


# --- the rendezvous -------------------------------------------------------------------------------------------------


#: Ways out that every phase has; the page tells them in its text.
EVERYWHERE = {(Phase.LEFT, Leave), (Phase.FAILED, Tick), (Phase.FAILED, Failed), (Phase.FAILED, StopWaiting)}


def listed() -> set[Edge]:
    """Return the changes of phase that the table lists, except those of every phase."""
    edges = set[Edge]()
    for rule in rendezvous.TABLE:
        event = Reply if isinstance(rule.trigger, Purpose) else rule.trigger
        edges |= {
            (rule.phase.value, target.value, event.__name__)
            for target in rule.targets
            if (target, event) not in EVERYWHERE
        }
    return edges


def test_diagram_of_the_rendezvous_is_its_table() -> None:
    # A refused seal leads from awaiting to failed, which the page also tells in its text.
    assert listed() - {("awaiting", "failed", "Appeared")} == drawn("The rendezvous machine")


def test_every_listed_change_of_phase_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation itself fails at a change that is not listed (its law ``table``)."""
    found = set[Edge]()
    real = Judge.steps

    def steps(judge: Judge, node: Member, before: State, event: Input, result: Step) -> None:
        real(judge, node, before, event, result)
        found.add((before.phase.value, result.state.phase.value, type(event).__name__))

    monkeypatch.setattr(Judge, "steps", steps)
    for seed in (*range(200), 217):
        play(make_scenario(seed))
    assert listed() - found == {("awaiting", "failed", "Appeared")}, "only a refused seal does not happen here"


def test_a_change_of_phase_that_the_table_does_not_list_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Phase.TICKETING, Purpose.RECORD
    rule = rendezvous.RULES[key]
    monkeypatch.setitem(rendezvous.RULES, key, evolve(rule, targets=rule.targets - {Phase.GATHERING}))
    with pytest.raises(
        SimulationError, match=r"table: Reply leads n\d from ticketing to gathering, which is not listed"
    ):
        play(make_scenario(0))
