"""Opens a backend by name, and turns the machine's giving up into an exception.

Kept apart from the handler so that a job that needs no store never loads the protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import (
    RendezvousError,
    RendezvousStateError,
    RendezvousTimeoutError,
    StoreLostError,
    StoreUnavailableError,
)
from ._api import RendezvousBackend, RendezvousHandler, RendezvousParameters

if TYPE_CHECKING:
    from ..plugins import PluginHost

__all__ = ["failure_of", "get_rendezvous_handler"]


def failure_of(kind: str, problem: str) -> RendezvousError:
    """Return the exception for what the machine calls ``timeout``, ``unavailable``, ``lost`` or ``state``."""
    kinds: dict[str, type[RendezvousError]] = {
        "timeout": RendezvousTimeoutError,
        "unavailable": StoreUnavailableError,
        "lost": StoreLostError,
        "state": RendezvousStateError,
    }
    return kinds.get(kind, RendezvousError)(problem)


def get_rendezvous_handler(parameters: RendezvousParameters, host: PluginHost | None = None) -> RendezvousHandler:
    """Return the handler of the installed backend ``parameters.backend``.  Connects to nothing yet.

    Raises:
        UnknownBackendError: no plugin offers it; the message names those that are installed, and the pip command.
        UsageError: the backend refuses the parameters.
    """
    if host is None:
        from ..plugins import get_host

        host = get_host()
    backend: RendezvousBackend = host.choose("rendezvous backend", parameters.backend)
    if backend.check is not None:
        backend.check(parameters)
    if backend.open_handler is not None:
        return backend.open_handler(parameters)
    from ._handler import StoreRendezvousHandler

    return StoreRendezvousHandler(parameters, backend, host)
