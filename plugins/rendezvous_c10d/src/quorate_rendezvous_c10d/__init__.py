"""Rendezvous backend ``c10d``: the core's protocol over torch's TCPStore, with one of the nodes as its host.

What lives here is the plugin object alone, which every launch imports.  The backend is imported when it is used, and
torch once a store is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_function
from quorate.rendezvous import RendezvousBackend

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
                open_store=lazy_function(f"{__name__}._store", "open_store"),
                bootstrap=lazy_function(f"{__name__}._bootstrap", "TCPStoreBootstrap"),
                check=lazy_function(f"{__name__}._settings", "check_parameters"),
                hosted_by_job=True,
                reads_other_settings=False,
            )
        ]


plugin = _Plugin()
