"""Rendezvous backend ``c10d``: the core's protocol over torch's TCPStore, with one of the nodes as its host.

What lives here is the plugin object alone; torch is imported only once a store is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from quorate.hookspecs import hookimpl
from quorate.rendezvous import RendezvousBackend

from ._bootstrap import TCPStoreBootstrap
from ._settings import check_parameters
from ._store import open_store

__all__ = ["plugin"]


@final
class _Plugin:
    """What the entry point names."""

    @hookimpl
    def quorate_register_rendezvous(self) -> Iterable[RendezvousBackend]:
        """Offer ``c10d``."""
        return [
            RendezvousBackend(
                name="c10d",
                summary="torch's TCPStore, hosted by the node whose address the endpoint names",
                open_store=open_store,
                bootstrap=TCPStoreBootstrap,
                check=check_parameters,
                hosted_by_job=True,
            )
        ]


plugin = _Plugin()
