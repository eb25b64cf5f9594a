"""Rendezvous without a server of its own: one node, fixed node ranks, or any nodes that know one endpoint.

Offers the backends ``standalone``, ``static`` and ``tcp``, and the store that the last two use.  Nothing but this
module is imported until a backend is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from quorate.rendezvous import RendezvousBackend, RendezvousHandler, RendezvousParameters, Store

    from ._client import TcpStore
    from ._server import TcpStoreServer
    from ._standalone import StandaloneHandler

__all__ = ["StandaloneHandler", "TcpStore", "TcpStoreServer", "plugin"]

_HOME = {"StandaloneHandler": "_standalone", "TcpStore": "_client", "TcpStoreServer": "_server"}

__getattr__ = lazy_exports(globals(), _HOME)


def _open_standalone(params: RendezvousParameters) -> RendezvousHandler:
    from ._standalone import StandaloneHandler

    return StandaloneHandler(params)


def _check_standalone(params: RendezvousParameters) -> None:
    from ._standalone import check

    check(params)


def _open_static(params: RendezvousParameters) -> Store:
    from ._backends import open_static

    return open_static(params)


def _check_static(params: RendezvousParameters) -> None:
    from ._backends import check_static

    check_static(params)


def _open_tcp(params: RendezvousParameters) -> Store:
    from ._backends import open_tcp

    return open_tcp(params)


def _check_tcp(params: RendezvousParameters) -> None:
    from ._backends import check_tcp

    check_tcp(params)


class plugin:  # noqa: N801 - the name of the entry point
    """The hooks that this distribution implements."""

    @staticmethod
    @hookimpl
    def quorate_register_rendezvous() -> list[RendezvousBackend]:
        """Offer the three backends."""
        from quorate.rendezvous import RendezvousBackend

        return [
            RendezvousBackend(
                "standalone",
                "one node on its own: no server, no network",
                open_handler=_open_standalone,
                check=_check_standalone,
            ),
            RendezvousBackend(
                "static",
                "a fixed number of nodes with fixed ranks; the agent with node rank 0 hosts the store",
                open_store=_open_static,
                check=_check_static,
                hosted_by_job=True,
            ),
            RendezvousBackend(
                "tcp",
                "any number of nodes; the first agent on the endpoint's machine hosts the store",
                open_store=_open_tcp,
                check=_check_tcp,
                hosted_by_job=True,
            ),
        ]
