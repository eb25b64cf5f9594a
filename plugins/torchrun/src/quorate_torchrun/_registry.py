"""The registry of rendezvous backends that a program fills at run time, and how a launch finds what is in it.

What does not live here: backends of installed distributions (``_plugin``), and how a handler of torch's interface runs
in quorate (``_adopted``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, final

import quorate
from quorate import PluginHost, PluginKind, RendezvousBackend, hookimpl
from quorate.lazy_exports import lazy_function
from quorate.plugins import get_host

RendezvousHandlerCreator = Callable[[Any], Any]

#: With torch, which programs with such a handler have.
_adopt, _torch_parameters = (lazy_function(f"{__package__}._adopted", name) for name in ("adopt", "torch_parameters"))
_TORCHS = "torch.distributed.elastic.rendezvous.api"


class RendezvousGracefulExitError(quorate.RendezvousError):
    """Raised by a handler whose node is not needed in the job: the node ends with success."""


@final
class RendezvousHandlerRegistry:
    """Backends by name.  A launch of this process finds those of :data:`rendezvous_handler_registry`."""

    def __init__(self) -> None:
        self._creators: dict[str, RendezvousHandlerCreator] = {}

    def __contains__(self, backend: str) -> bool:
        return backend in self._creators

    def register(self, backend: str, creator: RendezvousHandlerCreator) -> None:
        """Have ``creator`` make the handlers of ``backend``; it is called with the parameters.

        Raises:
            UsageError: no name, or one that another creator has.
        """
        if not backend:
            raise quorate.UsageError("a rendezvous backend needs a name")
        if self._creators.setdefault(backend, creator) is not creator:
            raise quorate.UsageError(f"the rendezvous backend {backend!r} is registered with another creator already")

    def create_handler(self, params: Any) -> Any:
        """Return the handler that ``params.backend`` makes.

        Raises:
            UsageError: the backend is not registered.
            PluginError: the handler says that it belongs to another backend.
        """
        creator = self._creators.get(params.backend)
        if creator is None:
            raise quorate.UsageError(f"the rendezvous backend {params.backend!r} is not registered")
        handler = creator(params)
        if handler.get_backend() != params.backend:
            raise quorate.PluginError(
                f"the rendezvous backend {params.backend!r} made a handler of {handler.get_backend()!r}"
            )
        return handler


#: The registry of this process.
rendezvous_handler_registry = RendezvousHandlerRegistry()


def get_rendezvous_handler(params: quorate.RendezvousParameters) -> Any:
    """Return the handler of a registered backend, else that of an installed one.

    Raises:
        as :meth:`RendezvousHandlerRegistry.create_handler` and :func:`quorate.get_rendezvous_handler`.
    """
    if params.backend in rendezvous_handler_registry:
        return rendezvous_handler_registry.create_handler(params)
    return quorate.get_rendezvous_handler(params)


def host_with(backend: str) -> PluginHost | None:
    """Return a host that knows ``backend`` from a registry of this process; ``None`` where that is not needed."""
    if not backend or backend in get_host().catalogue(PluginKind.RENDEZVOUS):
        return None
    create = _find_creator(backend)
    return None if create is None else PluginHost(extra=[("registered-in-this-process", _Registered(backend, create))])


def _find_creator(backend: str) -> RendezvousHandlerCreator | None:
    if backend in rendezvous_handler_registry:
        return rendezvous_handler_registry.create_handler
    theirs = getattr(sys.modules.get(_TORCHS), "rendezvous_handler_registry", None)
    if backend not in getattr(theirs, "_registry", ()):
        return None
    return partial(_create_by_torch, theirs)


def _create_by_torch(registry: Any, params: quorate.RendezvousParameters) -> Any:
    return registry.create_handler(_torch_parameters(params))


@final
class _Registered:
    """Offers one backend of a registry."""

    def __init__(self, backend: str, create: RendezvousHandlerCreator) -> None:
        self._backend, self._create = backend, create

    @hookimpl
    def quorate_register_rendezvous(self) -> list[RendezvousBackend]:
        return [RendezvousBackend(self._backend, "registered in this process", open_handler=self._open)]

    def _open(self, params: quorate.RendezvousParameters) -> quorate.RendezvousHandler:
        handler = self._create(params)
        if isinstance(handler, quorate.RendezvousHandler):
            return handler
        adopted: quorate.RendezvousHandler = _adopt(handler, f"{self._backend}, registered in this process,", params)
        return adopted
