"""Rendezvous over etcd: a store that outlives every node of the job.

Offers the backends ``etcd`` and ``etcd-v2`` and, for tests and jobs of one machine, :class:`EtcdServer`.  What lives
here is the plugin object alone; neither protobuf nor HTTP/2 nor an etcd client is imported until a backend is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

from quorate.hookspecs import hookimpl

if TYPE_CHECKING:
    from quorate.rendezvous import RendezvousBackend, RendezvousParameters, Store

    from ._server import EtcdServer

__all__ = ["EtcdServer", "plugin"]


def __getattr__(name: str) -> Any:
    if name != "EtcdServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._server import EtcdServer

    globals()[name] = EtcdServer
    return EtcdServer


# None of these is called as a module here is: importing one sets the package's attribute of that name.
def _open(parameters: RendezvousParameters) -> Store:
    from ._fork import importing

    with importing:
        from ._store import open_store

    return open_store(parameters)


def _check_parameters(parameters: RendezvousParameters) -> None:
    from ._settings import Settings

    Settings.from_parameters(parameters)


def _open_v2(parameters: RendezvousParameters) -> Store:
    from ._fork import importing

    with importing:
        from ._settings import Settings
        from ._v2_store import open_v2_store

    return open_v2_store(Settings.from_parameters(parameters, is_v2=True))


def _check_v2_parameters(parameters: RendezvousParameters) -> None:
    from ._settings import Settings

    Settings.from_parameters(parameters, is_v2=True)


_SETTINGS = {
    "dial_timeout": "how long one member of the cluster may take to answer before another is asked [1; etcd-v2: 2]",
    "key_ttl": "how long etcd keeps the keys of a job whose agents are all dead [600, or twice store_outage_timeout]",
    "member_ttl": "how long etcd keeps the entry of an agent that was killed; at least 2 [30]",
}


@final
class _Plugin:
    """What the entry point names."""

    @hookimpl
    def quorate_register_rendezvous(self) -> Iterable[RendezvousBackend]:
        """Offer ``etcd`` and ``etcd-v2``."""
        from quorate.rendezvous import RendezvousBackend

        return [
            RendezvousBackend(
                name="etcd",
                summary="an etcd cluster (API v3), which outlives every node of the job",
                open_store=_open,
                check=_check_parameters,
                settings=_SETTINGS,
            ),
            RendezvousBackend(
                name="etcd-v2",
                summary="etcd's API v2, for clusters that still serve it (etcd 3.5 and older, --enable-v2=true)",
                open_store=_open_v2,
                check=_check_v2_parameters,
                settings=_SETTINGS,
            ),
        ]


plugin = _Plugin()
