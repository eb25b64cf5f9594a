"""Rendezvous: the interfaces that backends implement, and the protocol that the core builds on them.

Opening an installed backend by name is in :mod:`quorate.backends`.
"""

from __future__ import annotations

from ._api import (
    RendezvousBackend,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from ._cell import Cell, CellStore
from ._handler import StoreRendezvousHandler
from ._memory import InMemoryStore
from ._over import job_is_over
from ._port import Bootstrap, PortReservation
from ._ranks import assign_ranks, order_nodes
from ._signed import SignedStore, protect, sign_store
from ._store import BatchStore, HostedStore, InterruptibleStore, Store

__all__ = [
    "BatchStore",
    "Bootstrap",
    "Cell",
    "CellStore",
    "HostedStore",
    "InMemoryStore",
    "InterruptibleStore",
    "PortReservation",
    "RendezvousBackend",
    "RendezvousHandler",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStoreInfo",
    "SignedStore",
    "Store",
    "StoreRendezvousHandler",
    "assign_ranks",
    "job_is_over",
    "order_nodes",
    "protect",
    "sign_store",
]
