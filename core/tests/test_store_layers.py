"""A layer has the abilities of the store below, whichever they are and whatever the layer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import Any

import pytest

from quorate.rendezvous import (
    AttentiveStore,
    BatchStore,
    HostedStore,
    InMemoryStore,
    InterruptibleStore,
    LastWordStore,
    Store,
    Write,
    sign_store,
)
from quorate.rendezvous._incarnation_store import incarnation_store
from quorate.rendezvous._layer import Layer, lay_over
from quorate.rendezvous._store import ends_with_host

KEY = bytes(range(32))


class Plain:
    """A store without any ability, over one in memory."""

    def __init__(self) -> None:
        self.memory = InMemoryStore()
        self.calls: list[Any] = []
        for name in ("create", "put", "add", "get", "wait", "delete", "close"):
            setattr(self, name, getattr(self.memory, name))


class Batch(Plain):
    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.calls.append("put_many")
        for key, value in items:
            self.memory.put(key, value)


class Interruptible(Plain):
    def interrupt(self) -> None:
        self.calls.append("interrupt")


class Hosted(Plain):
    is_host = True
    ends_with_this_node = False  # it has other hosts


class LastWord(Plain):
    def last_word_writer(self) -> Callable[[Sequence[Write]], None]:
        return print


class Attentive(Plain):
    return_timeout = 7.0

    def set_last_words(self, writes: Sequence[Write]) -> None:
        self.calls.append(list(writes))


ABILITIES = {
    BatchStore: Batch,
    InterruptibleStore: Interruptible,
    HostedStore: Hosted,
    LastWordStore: LastWord,
    AttentiveStore: Attentive,
}
SUBSETS = list(chain.from_iterable(combinations(ABILITIES, count) for count in range(len(ABILITIES) + 1)))


class Reversed(Layer):
    """A third layer: names are read backwards."""

    def _name(self, key: str) -> str:
        return key[::-1]

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return self.below.get([key[::-1] for key in keys])

    def wait(self, key: str, timeout: float) -> bytes | None:
        return self.below.wait(key[::-1], timeout)

    def delete(self, prefix: str) -> None:
        raise NotImplementedError


LAYERS: dict[str, Callable[[Store], Store]] = {
    "signed": lambda store: sign_store(store, KEY, print),
    "incarnation": lambda store: incarnation_store(store, 3, "job", False),
    "third": lambda store: lay_over(store, Reversed),
    "two": lambda store: incarnation_store(sign_store(store, KEY, print), 3, "job", False),
}


def stores() -> Iterator[tuple[Any, tuple[type, ...]]]:
    for kinds in SUBSETS:
        bases = tuple(ABILITIES[kind] for kind in kinds)
        yield type("Below", bases or (Plain,), {})(), kinds


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_abilities_of_the_store_below_and_no_others(name: str) -> None:
    for below, kinds in stores():
        layer = LAYERS[name](below)
        assert isinstance(layer, Layer)
        assert {kind for kind in ABILITIES if isinstance(layer, kind)} == set(kinds)


@pytest.mark.parametrize("name", LAYERS)
def test_every_ability_is_the_one_of_the_store_below(name: str) -> None:
    below = type("Below", tuple(ABILITIES.values()), {})()
    layer: Any = LAYERS[name](below)
    writes = [Write("ab", b"1", True), Write("c", b"2")]
    assert layer.create("ab", b"1")
    assert not layer.create("ab", b"0")
    layer.put_many([("c", b"2"), ("d", b"3")])
    layer.interrupt()
    layer.set_last_words(writes)
    assert below.calls == ["put_many", "interrupt", layer.writes_below(writes)]
    assert (layer.is_host, ends_with_host(layer), layer.return_timeout) == (True, False, 7.0)
    assert layer.last_word_writer() is print
    assert layer.get(["ab", "c", "d", "e"]) == [b"1", b"2", b"3", None]
    assert layer.wait("d", 0.0) == b"3"
    assert below.get([write.key for write in layer.writes_below(writes)]) == [
        write.value for write in layer.writes_below(writes)
    ]


def test_a_hosted_store_that_ends_with_its_host_says_so_through_a_layer() -> None:
    below: Any = type("Below", (Hosted,), {"ends_with_this_node": True})()
    assert ends_with_host(sign_store(below, KEY, print))
