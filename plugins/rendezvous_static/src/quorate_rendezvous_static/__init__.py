"""Rendezvous without a server of its own: one node, fixed node ranks, or any nodes that know one endpoint.

Offers the backends ``standalone``, ``static`` and ``tcp``, and the store that the last two use.  A backend is imported
when it is used: every launch imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_exports, lazy_function
from quorate.rendezvous import RendezvousBackend

from ._tls_settings import TLS_SETTINGS

if TYPE_CHECKING:
    from ._client import TcpStore
    from ._limits import Limits
    from ._server import TcpStoreServer
    from ._standalone import StandaloneHandler

__all__ = ["Limits", "StandaloneHandler", "TcpStore", "TcpStoreServer", "plugin"]

__getattr__ = lazy_exports(
    globals(),
    {
        "Limits": "_limits",
        "StandaloneHandler": "_standalone",
        "TcpStore": "_client",
        "TcpStoreServer": "_server",
    },
)
_SETTINGS = {
    "bind_address": "the address that the host of the store listens on [the addresses of the endpoint]",
    "return_timeout": "how long a node whose connections closed without a goodbye has to come back [1]",
    **TLS_SETTINGS,
}
_SHARED_PORT = {
    "shared_port": "a second port where the nodes may meet; the workers have it while they run; 0: none [master_port]",
}
_STANDALONE, _BACKENDS = f"{__name__}._standalone", f"{__name__}._backends"


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
                open_handler=lazy_function(_STANDALONE, "StandaloneHandler"),
                check=lazy_function(_STANDALONE, "check_standalone"),
            ),
            RendezvousBackend(
                "static",
                "a fixed number of nodes with fixed ranks; the agent with node rank 0 hosts the store",
                open_store=lazy_function(_BACKENDS, "open_static"),
                check=lazy_function(_BACKENDS, "check_static"),
                hosted_by_job=True,
                settings={**_SETTINGS, **_SHARED_PORT},
                reads_other_settings=False,
            ),
            RendezvousBackend(
                "tcp",
                "any number of nodes; the first agent on the endpoint's machine hosts the store",
                open_store=lazy_function(_BACKENDS, "open_tcp"),
                check=lazy_function(_BACKENDS, "check_tcp"),
                hosted_by_job=True,
                settings=_SETTINGS,
                reads_other_settings=False,
            ),
        ]
