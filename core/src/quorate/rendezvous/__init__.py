"""Rendezvous: the interfaces that backends implement, and the protocol that the core builds on them.

Opening an installed backend by name is in :mod:`quorate.backends`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports
from ._api import (
    EventDrivenHandler,
    RendezvousBackend,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from ._port import Bootstrap, PortReservation, reserve_master_port
from ._ranks import assign_ranks, order_nodes
from ._store import (
    AttentiveStore,
    BatchStore,
    HostedStore,
    InterruptibleStore,
    LastWordStore,
    LastWordWriter,
    PortLendingStore,
    Store,
    Write,
)

if TYPE_CHECKING:
    from ._cell import Cell, CellStore
    from ._handler import StoreRendezvousHandler
    from ._memory import InMemoryStore
    from ._over import job_is_over
    from ._signed import SignedStore, protect, sign_store

__all__ = [
    "AttentiveStore",
    "BatchStore",
    "Bootstrap",
    "Cell",
    "CellStore",
    "EventDrivenHandler",
    "HostedStore",
    "InMemoryStore",
    "InterruptibleStore",
    "LastWordStore",
    "LastWordWriter",
    "PortLendingStore",
    "PortReservation",
    "RendezvousBackend",
    "RendezvousHandler",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStoreInfo",
    "SignedStore",
    "Store",
    "StoreRendezvousHandler",
    "Write",
    "assign_ranks",
    "job_is_over",
    "order_nodes",
    "protect",
    "reserve_master_port",
    "sign_store",
]

#: A job of one node needs no store, and never loads the protocol.
__getattr__ = lazy_exports(
    globals(),
    {
        "Cell": "_cell",
        "CellStore": "_cell",
        "InMemoryStore": "_memory",
        "SignedStore": "_signed",
        "StoreRendezvousHandler": "_handler",
        "job_is_over": "_over",
        "protect": "_signed",
        "sign_store": "_signed",
    },
)
