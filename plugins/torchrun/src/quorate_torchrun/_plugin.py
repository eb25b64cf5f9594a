"""The plugin object, which the entry point names: it offers the handlers of third parties as rendezvous backends."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import final

from quorate.hookspecs import hookimpl
from quorate.plugins import find_plugins
from quorate.rendezvous import RendezvousBackend, RendezvousHandler, RendezvousParameters

__all__ = ["plugin"]

_GROUP = "torchrun.handlers"
#: What this distribution offers to torchrun itself.
_OWN = "quorate-torchrun"


def _open(target: str, parameters: RendezvousParameters) -> RendezvousHandler:
    from ._foreign import open_handler  # imports torch, which only jobs with such a handler need

    return open_handler(target, parameters)


@final
class _Plugin:
    """What the entry point names."""

    @hookimpl
    def quorate_register_rendezvous(self) -> Iterable[RendezvousBackend]:
        """Offer what is installed in torch's group of rendezvous handlers."""
        return [
            RendezvousBackend(
                name=found.name,
                summary=f"torch's interface, from {found.distribution}",
                open_handler=partial(_open, found.target),
            )
            for found in find_plugins(group=_GROUP)
            if found.distribution != _OWN
        ]


plugin = _Plugin()
