"""Opens an installed rendezvous backend by name."""

from __future__ import annotations

from ._isolation import call_plugin
from .catalogue import PluginKind
from .plugins import PluginHost, get_host
from .rendezvous import RendezvousBackend, RendezvousHandler, RendezvousParameters

__all__ = ["get_rendezvous_handler"]


def get_rendezvous_handler(parameters: RendezvousParameters, host: PluginHost | None = None) -> RendezvousHandler:
    """Return the handler of the installed backend ``parameters.backend``; makes no connection yet.

    Raises:
        UnknownBackendError: no plugin offers it; the message names the installed backends, and the pip command.
        UsageError: the backend refuses the parameters.
        PluginError: the backend raised what it must not.
    """
    host = host or get_host()
    backend: RendezvousBackend = host.choose(PluginKind.RENDEZVOUS, parameters.backend)
    if backend.check is not None:
        call_plugin(f"rendezvous backend {backend.name!r}", backend.check, parameters)
    if backend.open_handler is not None:
        return call_plugin(f"rendezvous backend {backend.name!r}", backend.open_handler, parameters)
    from .rendezvous import StoreRendezvousHandler  # keeps the protocol off the path of jobs without a store

    return StoreRendezvousHandler(parameters, backend, host)
