"""Rendezvous: the interfaces that backends implement, and the protocol that the core builds on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports
from ._api import (
    RendezvousBackend,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

if TYPE_CHECKING:
    from ._cell import Cell, CellStore
    from ._handler import StoreRendezvousHandler
    from ._memory import InMemoryStore
    from ._open import get_rendezvous_handler
    from ._port import Bootstrap, PortReservation
    from ._ranks import assign_ranks, order_nodes
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
    "Store",
    "StoreRendezvousHandler",
    "assign_ranks",
    "get_rendezvous_handler",
    "order_nodes",
]

_HOME = {
    "BatchStore": "_store",
    "Bootstrap": "_port",
    "Cell": "_cell",
    "CellStore": "_cell",
    "HostedStore": "_store",
    "InMemoryStore": "_memory",
    "InterruptibleStore": "_store",
    "PortReservation": "_port",
    "Store": "_store",
    "StoreRendezvousHandler": "_handler",
    "assign_ranks": "_ranks",
    "get_rendezvous_handler": "_open",
    "order_nodes": "_ranks",
}

__getattr__ = lazy_exports(globals(), _HOME)
