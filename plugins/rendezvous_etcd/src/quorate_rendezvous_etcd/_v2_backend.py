"""The record that offers the backend ``etcd-v2``.  Nothing is imported for it until it is opened."""

from __future__ import annotations

from quorate.lazy_typing import TYPE_CHECKING
from quorate.rendezvous import RendezvousBackend, RendezvousParameters

if TYPE_CHECKING:
    from quorate.rendezvous import Store

__all__ = ["v2_backend"]


def v2_backend() -> RendezvousBackend:
    """Return the backend ``etcd-v2``."""
    return RendezvousBackend(
        name="etcd-v2",
        summary="etcd's API v2, for clusters that still serve it (etcd 3.5 and older, --enable-v2=true)",
        open_store=_open,
        check=_check_parameters,
    )


def _open(parameters: RendezvousParameters) -> Store:
    from ._settings import Settings
    from ._v2_store import open_v2_store

    return open_v2_store(Settings.from_parameters(parameters, is_v2=True))


def _check_parameters(parameters: RendezvousParameters) -> None:
    from ._settings import Settings

    Settings.from_parameters(parameters, is_v2=True)
