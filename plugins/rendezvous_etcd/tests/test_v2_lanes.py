"""Reading and writing over a slow link: side by side, and again where an answer is held up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from quorate.errors import QuorateError
from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import DEADLINE_SECONDS
from .v2_harness import LossyProxy, OpenV2, in_background

#: More than a read takes by which the store tells a slow link.
ROUND_TRIP_SECONDS = 0.15
KEYS = ("0/a", "1/b", "2/c")


class Link:
    """Delays each request; holds up the next ones for ``held``, of as many as ``holds``."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.held, self.holds = b"", 0
        self.most = self._now = 0
        self.is_holding, self.is_over = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def delays(self, request: bytes) -> bool:
        with self._lock:
            is_held = self.holds > 0 and self.held in request.partition(b" HTTP")[0]
            self.holds -= is_held
            self._now += 1
            self.most = max(self.most, self._now)
        if is_held:
            self.is_holding.set()
            self.is_over.wait(DEADLINE_SECONDS)
        elif self.delay:
            self.is_over.wait(self.delay)
        with self._lock:
            self._now -= 1
        return False


@contextmanager
def slow_link(server: EtcdServer) -> Iterator[tuple[Link, str]]:
    link = Link()
    proxy = LossyProxy(server.get_endpoint(), link.delays)
    try:
        yield link, proxy.endpoint
    finally:
        link.is_over.set()
        proxy.close()


@pytest.fixture
def link(shared_v2: EtcdServer, open_v2: OpenV2) -> Iterator[tuple[Link, Callable[[], list[bytes | None]]]]:
    """A slow link, and what reads the keys over it."""
    with slow_link(shared_v2) as (link, endpoint):
        store = open_v2(endpoint=endpoint)
        for key in KEYS[:2]:
            store.put(key, key.encode())
        link.delay = ROUND_TRIP_SECONDS
        yield link, lambda: store.get(KEYS)
        link.delay = 0.0
        store.close()


Reading = tuple[Link, Callable[[], "list[bytes | None]"]]
VALUES = [b"0/a", b"1/b", None]


def test_over_a_slow_link_keys_are_read_side_by_side(link: Reading) -> None:
    slow, read = link
    slow.most = 0
    assert read() == VALUES
    assert slow.most == 1, "nobody knew that it is slow"
    assert read() == VALUES
    assert slow.most == len(KEYS)


@pytest.mark.parametrize("holds", [1, 2])
def test_an_answer_that_is_held_up_is_asked_for_again(link: Reading, holds: int) -> None:
    slow, read = link
    read()
    slow.held, slow.holds = b"1/=b", holds
    assert read() == VALUES
    assert slow.is_holding.is_set()
    assert slow.holds == 0
    assert read() == VALUES, "the connections that wait are left out"


def test_a_write_whose_answer_is_held_up_is_sent_again(shared_v2: EtcdServer, open_v2: OpenV2) -> None:
    with slow_link(shared_v2) as (slow, endpoint):
        store = open_v2(endpoint=endpoint)
        slow.delay = ROUND_TRIP_SECONDS
        store.get(KEYS)
        store.get(KEYS)
        slow.held, slow.holds = b"PUT ", 1
        store.put("a", b"1")
        assert slow.is_holding.is_set()
        assert slow.holds == 0
        store.put("a", b"2")
        assert store.get(["a"]) == [b"2"]
        slow.delay = 0.0
        store.close()


def test_a_store_that_is_closed_while_answers_are_held_up_leaves_nothing(
    shared_v2: EtcdServer, open_v2: OpenV2
) -> None:
    with slow_link(shared_v2) as (slow, endpoint):
        store = open_v2(endpoint=endpoint)
        slow.delay = ROUND_TRIP_SECONDS
        store.get(KEYS)
        slow.held, slow.holds = b"1/=b", 100
        reading = in_background(store.get, KEYS)
        assert slow.is_holding.wait(DEADLINE_SECONDS)
        store.close()
        with pytest.raises(QuorateError):
            reading.result(DEADLINE_SECONDS)
