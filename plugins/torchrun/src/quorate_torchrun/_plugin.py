"""The plugin object, which the entry point names: rendezvous handlers that third parties have made for torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from quorate import RendezvousBackend, RendezvousHandler, RendezvousParameters, hookimpl
from quorate.plugins import FoundPlugin, find_plugins

_GROUP = "torchrun.handlers"
_OWN = "quorate-torchrun"


@final
class _Plugin:
    """Offers as a backend what an installed distribution offers to torchrun, but for quorate's own handlers."""

    @hookimpl
    def quorate_register_rendezvous(self) -> Sequence[RendezvousBackend]:
        return [
            RendezvousBackend(
                found.name, f"rendezvous handler of {found.distribution}, made for torchrun", open_handler=_open(found)
            )
            for found in find_plugins(group=_GROUP)
            if found.distribution != _OWN
        ]


def _open(found: FoundPlugin) -> Callable[[RendezvousParameters], RendezvousHandler]:
    def open_handler(parameters: RendezvousParameters) -> RendezvousHandler:
        from ._adopted import open_adopted  # with torch

        return open_adopted(found, parameters)

    return open_handler


plugin = _Plugin()
