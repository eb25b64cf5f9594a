"""What torchrun's interface reads; found by ``core.tests.fuzz``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from core.tests.fuzz.target import Target

from quorate.errors import RendezvousStateError, RendezvousTimeoutError
from quorate.records import NodeRecord
from quorate.rendezvous import RendezvousStoreInfo
from quorate_torchrun._adopted import AdoptedHandler
from quorate_torchrun._arguments import parse_min_max_nnodes
from quorate_torchrun._store_info import RendezvousStoreInfo as StoreInfo


class _Store:
    """A store in which one other node has told its size."""

    def __init__(self, data: bytes) -> None:
        self._values = {"quorate/node/1": data}

    def set(self, key: str, value: str) -> None:
        self._values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        assert self._values.keys() >= set(keys)


def _assign(data: bytes) -> None:
    handler = AdoptedHandler(None)
    handler.prepare(NodeRecord("a", "r", 2))
    handler._store = _Store(data)
    assignment = handler._assign(0, 2, RendezvousStoreInfo("127.0.0.1", 5))
    assert 2 < assignment.world_size <= 1 << 17


class _Meeting(dict[str, bytes]):
    """A store into which rank 0 has written where the workers meet."""

    def __init__(self, data: bytes) -> None:
        address, _, port = data.partition(b"\0")
        super().__init__({StoreInfo.MASTER_ADDR_KEY: address, StoreInfo.MASTER_PORT_KEY: port})

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


def _find_meeting(data: bytes) -> None:
    assert 0 < StoreInfo.build(1, _Meeting(data), None).master_port < 65536


TARGETS: Mapping[str, Target] = {
    "where workers meet": Target(
        _find_meeting, (b"node1\x0029500",), (ValueError,), (b"node1\x00" + b"9" * 5000, b"\xff\x001", b"a\x000")
    ),
    "sizes of nodes": Target(
        _assign,
        (b'{"role":"r","workers":3}',),
        (RendezvousStateError, RendezvousTimeoutError),
        (b"7", b'{"role":5,"workers":1}', b'{"role":"r","workers":1e9}', b"[" * 100_000),
    ),
    "numbers of nodes": Target(
        lambda data: parse_min_max_nnodes(data.decode("utf-8", "replace")), (b"1:4", b"2"), (ValueError, RuntimeError)
    ),
}
ELSEWHERE: Mapping[str, str] = {
    "quorate_torchrun/_adopted:open_adopted": "imports an entry point of an installed distribution",
    "quorate_torchrun/_arguments:parse_args": "argparse's own, for the user's command line; it exits with a sentence",
}
