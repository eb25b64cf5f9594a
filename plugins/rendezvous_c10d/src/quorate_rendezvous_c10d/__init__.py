"""Rendezvous backend ``c10d``: the core's protocol over torch's TCPStore, with one of the nodes as its host.

What lives here is the plugin object alone; torch is imported only once the backend is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from quorate.hookspecs import hookimpl
from quorate.rendezvous import RendezvousBackend, RendezvousParameters

if TYPE_CHECKING:
    from quorate.rendezvous import Bootstrap, Store

__all__ = ["plugin"]


# None of these three is called as a module here is: importing one sets the package's attribute of that name.
def _open(parameters: RendezvousParameters) -> Store:
    from ._store import open_store

    return open_store(parameters)


def _make_bootstrap() -> Bootstrap:
    from ._bootstrap import TCPStoreBootstrap

    return TCPStoreBootstrap()


def _check_parameters(parameters: RendezvousParameters) -> None:
    from ._settings import Settings

    Settings.from_parameters(parameters)


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
                open_store=_open,
                bootstrap=_make_bootstrap,
                check=_check_parameters,
                hosted_by_job=True,
            )
        ]


plugin = _Plugin()
