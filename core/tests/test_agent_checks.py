"""How an agent runs the checks of its node: in order, none held up by another, each under its own time-out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from quorate.agent._checks import Checks
from quorate.agent._protocol import Input, NodeChecked, NodeUnhealthy
from quorate.catalogue import HealthCheck
from quorate.records import AgentPhase
from quorate.services import AgentSnapshot, HangReport

DEADLINE = 30.0


class StubView:
    """As much of an agent as running checks takes."""

    environment: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.phase = AgentPhase.CHECKING

    def snapshot(self) -> AgentSnapshot:
        return AgentSnapshot("run", "node", "host", "role", self.phase, "", 0)

    def turn(self, timeout: float) -> float | None:
        return None

    def store_latency(self, timeout: float) -> float | None:
        return None

    def report_hang(self, report: HangReport) -> None:
        raise AssertionError

    def report_unhealthy(self, problem: str) -> None:
        raise AssertionError

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        raise AssertionError

    def say(self, sentence: str) -> None:
        raise AssertionError


class Bench:
    """Runs checks as an agent's thread does: it waits until it is woken, or for as long as it was told."""

    def __init__(self) -> None:
        self.view = StubView()
        self.woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.running: list[Checks] = []
        self.gate = threading.Event()

    def start(self, *checks: HealthCheck, interval: float = 0.0) -> Checks:
        self.running.append(Checks(checks, self.view, lambda: self.woken.put(None), interval))
        return self.running[-1]

    def wait(self, checks: Checks) -> Input:
        end = time.monotonic() + DEADLINE
        while (found := checks.advance(time.monotonic())) is None:
            due = checks.wake_at()
            try:
                self.woken.get(timeout=max(0.0, (end if due is None else min(due, end)) - time.monotonic()))
            except queue.Empty:
                assert time.monotonic() < end, "no answer"
        return found

    def once(self, *checks: HealthCheck) -> tuple[str, ...]:
        running = self.start(*checks)
        assert running.begin() is None
        answer = self.wait(running)
        assert isinstance(answer, NodeChecked)
        return answer.problems

    def stuck(self, agent: object) -> str | None:
        self.gate.wait(DEADLINE)
        return "late"


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = set(threading.enumerate())
    bench = Bench()
    yield bench
    bench.gate.set()
    for checks in bench.running:
        checks.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def says(name: str, problem: str | None, seconds: float = DEADLINE) -> HealthCheck:
    return HealthCheck(name, f"a {name}", lambda agent: problem, seconds)


def looks(name: str, look: Callable[[object], str | None], seconds: float = DEADLINE) -> HealthCheck:
    return HealthCheck(name, f"a {name}", look, seconds)


def test_nothing_to_check_is_answered_at_once(bench: Bench) -> None:
    assert bench.start().begin() == NodeChecked()


def test_problems_come_in_the_order_of_the_checks_and_carry_their_names(bench: Bench) -> None:
    assert bench.once(says("a", "is bad"), says("b", None), says("c", "is worse")) == ("a: is bad", "c: is worse")


def test_a_check_that_raises_is_a_problem(bench: Bench) -> None:
    def fail(agent: object) -> str | None:
        raise OSError("no such thing")

    assert bench.once(looks("a", fail), says("b", None)) == ("a: the check raised OSError: no such thing",)


def test_what_a_check_says_is_bounded_and_steers_no_terminal(bench: Bench) -> None:
    class Odd(str):
        def __bool__(self) -> bool:
            raise SystemExit(3)

    long, odd = bench.once(says("a", "x\x1b[2J" * 1_000_000), says("b", Odd("x")))
    assert len(long) < 5000
    assert "\x1b" not in long
    assert odd == "b: the check raised SystemExit: 3"


def test_checks_that_answer_at_once_share_one_thread(bench: Bench) -> None:
    seen: list[str] = []

    def note(agent: object) -> str | None:
        seen.append(threading.current_thread().name + str(threading.get_ident()))
        return None

    assert bench.once(*(looks(f"c{n}", note) for n in range(8))) == ()
    assert len(seen) == 8
    assert len(set(seen)) <= 2, "a machine that stalls may cost a second thread, no more"


def test_a_stuck_check_costs_its_time_out_and_nothing_else(bench: Bench) -> None:
    """The others have long answered; the sentence says what it was about."""
    began = time.monotonic()
    problems = bench.once(looks("disk", bench.stuck, 0.5), says("b", "is bad"), looks("c", bench.stuck, 0.7))
    assert problems == ("disk: no answer within 0.5 s (a disk)", "b: is bad", "c: no answer within 0.7 s (a c)")
    assert time.monotonic() - began < DEADLINE / 2


@pytest.mark.parametrize("seconds", [10**400, float("inf"), 2**63], ids=["no float", "infinite", "large"])
def test_a_check_may_have_a_timeout_of_any_length(bench: Bench, seconds: float) -> None:
    begun = threading.Event()

    def look(agent: object) -> str | None:
        begun.set()
        bench.gate.wait(DEADLINE)
        return "is bad"

    running = bench.start(looks("slow", look, seconds))
    assert running.begin() is None
    assert begun.wait(DEADLINE)
    assert running.advance(time.monotonic()) is None
    due = running.wake_at()
    assert due is not None
    assert due > time.monotonic() + DEADLINE
    bench.gate.set()
    answer = bench.wait(running)
    assert isinstance(answer, NodeChecked)
    assert answer.problems == ("slow: is bad",)


def test_a_check_that_waits_for_a_later_one_is_answered(bench: Bench) -> None:
    """A slow check never keeps the ones behind it from running."""
    met = threading.Event()

    def meet(agent: object) -> str | None:
        return None if met.wait(DEADLINE) else "nobody came"

    def come(agent: object) -> str | None:
        met.set()
        return None

    assert bench.once(looks("first", meet), looks("second", come)) == ()


def test_nothing_is_begun_after_the_end(bench: Bench) -> None:
    begun: list[str] = []
    entered = threading.Event()

    def enter(agent: object) -> str | None:
        entered.set()
        return bench.stuck(agent)

    def note(agent: object) -> str | None:
        begun.append("b")
        return None

    checks = bench.start(looks("a", enter), looks("b", note))
    checks.begin()
    assert entered.wait(DEADLINE)
    checks.close()
    bench.gate.set()
    bench.woken.get(timeout=DEADLINE)
    assert not begun


def test_checks_repeat_until_one_finds_something(bench: Bench) -> None:
    answers = iter([None, None, None, "is bad"])
    checks = bench.start(looks("a", lambda agent: next(answers)), interval=0.01)
    assert checks.wake_at() is None, "the first one is asked for"
    checks.begin()
    assert bench.wait(checks) == NodeChecked()
    assert bench.wait(checks) == NodeUnhealthy("a: is bad")
    assert next(answers, "over") == "over"
    assert checks.wake_at() is None, "it has been told, and is not told again"
    answers = iter([None, "is worse"])
    checks.begin()
    assert [bench.wait(checks), bench.wait(checks)] == [NodeChecked(), NodeUnhealthy("a: is worse")]


def test_without_an_interval_nothing_repeats(bench: Bench) -> None:
    checks = bench.start(says("a", None))
    checks.begin()
    assert bench.wait(checks) == NodeChecked()
    assert checks.wake_at() is None


def test_a_join_during_a_check_takes_its_answer(bench: Bench) -> None:
    """The same check never runs twice at a time."""
    count: list[int] = []

    def hold(agent: object) -> str | None:
        count.append(1)
        if len(count) > 1:
            bench.gate.wait(DEADLINE)
        return "is bad" if len(count) > 1 else None

    checks = bench.start(looks("a", hold), interval=0.01)
    checks.begin()
    assert bench.wait(checks) == NodeChecked()
    while len(count) < 2:
        checks.advance(time.monotonic())
    assert checks.begin() is None
    bench.gate.set()
    assert bench.wait(checks) == NodeChecked(("a: is bad",))
    assert len(count) == 2
