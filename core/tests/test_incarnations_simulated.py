"""Incarnations of one run id, in turns that chance chooses, and wrong judgements that this finds."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import evolve
from core.tests.incarnation_parts import ALICE, LEASE, SUCCEEDED, beat, seal

from quorate.errors import QuorateError, StoreLostError
from quorate.records import NodeRecord
from quorate.rendezvous import InMemoryStore, _incarnation as incarnation, _incarnation_store as incarnation_store
from quorate.rendezvous._incarnation import JobEntry, Next, judge
from quorate.rendezvous._incarnation_store import IncarnationStore
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState
from quorate.rendezvous._observed_job import ObservedJob
from quorate.rendezvous._protocol import Key
from quorate.rendezvous._wire import encode

# --- many nodes, one call at a time -----------------------------------------------------------------------------------


class Turns:
    """Lets one of several threads run at a time; at each store call and pause the seed chooses the next one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self._changed = threading.Condition()
        self._wake_at: dict[int, float] = {}
        self._turn = -1
        self.check: Callable[[], None] = lambda: None

    def run(self, bodies: Sequence[Callable[[int], None]]) -> list[BaseException]:
        problems: list[BaseException] = []

        def body(me: int) -> None:
            self._await_turn(me)
            try:
                bodies[me](me)
            except BaseException as error:
                problems.append(error)
            with self._changed:
                del self._wake_at[me]
                self._choose()

        self._wake_at = dict.fromkeys(range(len(bodies)), 0.0)
        threads = [threading.Thread(target=body, args=(me,)) for me in self._wake_at]
        for thread in threads:
            thread.start()
        with self._changed:
            self._choose()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return problems

    def sleep(self, me: int, seconds: float) -> bool:
        self.check()
        with self._changed:
            self._wake_at[me] = self.now + seconds
            self._choose()
        self._await_turn(me)
        return False

    def _choose(self) -> None:
        if self._wake_at:
            earliest = min(self._wake_at.values())
            self.now = max(self.now, earliest)
            ready = sorted(me for me, at in self._wake_at.items() if at <= self.now)
            self._turn = self.random.choice(ready)
        self._changed.notify_all()

    def _await_turn(self, me: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._turn == me, 60)


class Slow:
    """A store whose every call takes a little time, in which other nodes have their turn."""

    def __init__(self, data: InMemoryStore, turns: Turns, me: int) -> None:
        self._data, self._turns, self._me = data, turns, me

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._data, name)

        def call(*arguments: Any) -> Any:
            self._turns.sleep(self._me, self._turns.random.choice([0.0, 0.001, 0.2]))
            result = method(*arguments)
            self._turns.sleep(self._me, 0.0)
            return result

        return call


class City:
    """Jobs of two nodes, one after the other, on two hosts; a node may be killed, or stand still for long."""

    def __init__(self, seed: int) -> None:
        self.turns, self.data = Turns(seed), InMemoryStore()
        self.living: dict[int, set[str]] = {}  # incarnation -> nodes that are in it and have not left
        self.still: set[str] = set()  # nodes that stand still, or were killed
        self.begun: list[int] = []

    def node(self, me: int, host: str, runs: int) -> None:
        turns, choose = self.turns, self.turns.random
        for run in range(runs):
            name = f"{host}-{run}"
            record = evolve(ALICE, node_id=name, host=host)
            plain = Slow(self.data, turns, me)
            guide = JobEntry(
                "job",
                True,
                LEASE,
                False,
                lambda seconds: turns.sleep(me, seconds),
                lambda text: None,
                lambda: turns.now,
            )
            store = guide.enter(plain, record)  # type: ignore[arg-type] # it has the methods
            assert isinstance(store, IncarnationStore)
            self.enters(store.number, name)
            try:
                self.work(me, store, name, host, choose.choice(["leaves", "leaves", "killed", "stands still"]))
            except StoreLostError:
                assert name in self.still, f"{name} was thrown out while it was alive"
            self.living[store.number].discard(name)
            self.still.discard(name)

    def enters(self, number: int, name: str) -> None:
        older = {other for at, names in self.living.items() if at < number for other in names} - self.still
        assert not older, f"{name} is in incarnation {number}, and {sorted(older)} live in an older one"
        newer = [at for at in self.living if at > number and self.living[at] - self.still]
        assert not newer, f"{name} is in incarnation {number}, and {newer} has begun"
        self.living.setdefault(number, set()).add(name)
        self.begun.append(number)

    def work(self, me: int, store: IncarnationStore, name: str, host: str, end: str) -> None:
        rank = int(host[-1]) - 1
        seal(store, 2)
        for count in range(1, 6):
            beat(store, rank, count, host)
            self.turns.sleep(me, LEASE / 4)
        store.create(Key.ended(0), encode(SUCCEEDED))
        store.add(Key.ROUND, 1)
        if end != "leaves":
            self.still.add(name)
            if end == "killed":
                return
            self.turns.sleep(me, 5 * LEASE)
        store.get([Key.ended(0)])
        self.living[store.number].discard(name)
        self.still.add(name)  # it has left: the job may go on without it, and end
        beat(store, rank, 9, host, HeartbeatState.DONE_AND_LEFT)
        values = store.get([Key.rank_heartbeat(0, 0), Key.rank_heartbeat(0, 1)])
        if all(value is not None and Heartbeat.decode(value).state.has_left for value in values):
            store.end()


def play(seed: int) -> None:
    city = City(seed)
    problems = city.turns.run([lambda me: city.node(me, "h1", 3), lambda me: city.node(me, "h2", 3)])
    assert not problems, f"seed {seed}: {problems[0]}"
    assert len(city.begun) == 6


def play_many(count: int) -> None:
    for seed in range(count):
        play(seed)


def test_no_two_incarnations_live_at_once() -> None:
    play_many(60)


def _judge_at_once(*arguments: Any) -> Next:
    answer = judge(*arguments)
    return Next.BEGIN if answer is Next.WAIT else answer


def _judge_for_ever(node: NodeRecord, first: ObservedJob, now: ObservedJob, *rest: Any) -> Next:
    return Next.JOIN


@pytest.mark.parametrize("mutant", [_judge_at_once, _judge_for_ever])
def test_the_simulation_catches_a_wrong_judgement(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incarnation, "judge", mutant)
    with pytest.raises((AssertionError, QuorateError)):
        play_many(20)


def test_the_simulation_catches_incarnations_that_are_over_for_one_node_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (incarnation, incarnation_store):
        monkeypatch.setattr(module, "over_key", lambda number: f"incarnation/{number}/over/{random.random()}")
    with pytest.raises((AssertionError, QuorateError)):
        play_many(20)
