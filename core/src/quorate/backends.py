"""Opens an installed rendezvous backend by name."""

from __future__ import annotations

from .catalogue import PluginKind
from .plugins import PluginHost, get_host
from .rendezvous import RendezvousBackend, RendezvousHandler, RendezvousParameters

__all__ = ["get_rendezvous_handler"]


def get_rendezvous_handler(parameters: RendezvousParameters, host: PluginHost | None = None) -> RendezvousHandler:
    """Return the handler of the installed backend ``parameters.backend``; makes no connection yet.

    Raises:
        UnknownBackendError: no plugin offers it; the message names the installed backends, and the pip command.
        UsageError: the backend refuses the parameters.
    """
    host = host or get_host()
    backend: RendezvousBackend = host.choose(PluginKind.RENDEZVOUS, parameters.backend)
    if backend.check is not None:
        backend.check(parameters)
    if backend.open_handler is not None:
        return backend.open_handler(parameters)
    from .rendezvous import StoreRendezvousHandler  # keeps the protocol off the path of jobs without a store

    return StoreRendezvousHandler(parameters, backend, host)
