"""Rendezvous without a server of its own: one node, fixed node ranks, or any nodes that know one endpoint.

Offers the backends ``standalone``, ``static`` and ``tcp``, and the store that the last two use.
"""

from __future__ import annotations

from quorate.hookspecs import hookimpl
from quorate.rendezvous import RendezvousBackend

from ._backends import TLS_SETTINGS, check_static, check_tcp, open_static, open_tcp
from ._client import TcpStore
from ._limits import Limits
from ._server import TcpStoreServer
from ._standalone import StandaloneHandler, check_standalone

__all__ = ["Limits", "StandaloneHandler", "TcpStore", "TcpStoreServer", "plugin"]


class plugin:  # noqa: N801 - the name of the entry point
    """The hooks that this distribution implements."""

    @staticmethod
    @hookimpl
    def quorate_register_rendezvous() -> list[RendezvousBackend]:
        """Offer the three backends."""
        return [
            RendezvousBackend(
                "standalone",
                "one node on its own: no server, no network",
                open_handler=StandaloneHandler,
                check=check_standalone,
            ),
            RendezvousBackend(
                "static",
                "a fixed number of nodes with fixed ranks; the agent with node rank 0 hosts the store",
                open_store=open_static,
                check=check_static,
                hosted_by_job=True,
                settings=TLS_SETTINGS,
            ),
            RendezvousBackend(
                "tcp",
                "any number of nodes; the first agent on the endpoint's machine hosts the store",
                open_store=open_tcp,
                check=check_tcp,
                hosted_by_job=True,
                settings=TLS_SETTINGS,
            ),
        ]
