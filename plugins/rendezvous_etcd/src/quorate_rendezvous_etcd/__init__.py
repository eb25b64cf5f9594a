"""Rendezvous over etcd: a store that outlives every node of the job.

Offers the backends ``etcd`` (package ``_v3``) and ``etcd-v2`` (package ``_v2``) and, for tests and jobs of one machine,
:class:`EtcdServer`.  The two packages have the same modules: ``store``, ``member``, ``job``, ``lease``, ``watch``,
``client``, ``transport``, ``answers``.  What both share stands beside this module.

This module holds the plugin object alone.  Protobuf, HTTP/2 and python-etcd are imported when a backend is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, final

from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_exports, lazy_function
from quorate.rendezvous import RendezvousBackend, RendezvousParameters, Store

from ._settings import Settings

if TYPE_CHECKING:  # subprocess is not needed by an agent
    from ._server import EtcdServer

__all__ = ["EtcdServer", "plugin"]


__getattr__ = lazy_exports(globals(), {"EtcdServer": "_server"})


def _importing() -> AbstractContextManager[object]:
    from quorate.import_lock import import_lock  # it imports logging

    return import_lock


def _open_v3(parameters: RendezvousParameters) -> Store:
    settings = Settings.from_parameters(parameters)
    with _importing():
        from ._v3.store import EtcdStore  # h2 and protobuf are imported only where they are needed

    return EtcdStore(settings)


def _check_v3(parameters: RendezvousParameters) -> None:
    Settings.from_parameters(parameters)


def _open_v2(parameters: RendezvousParameters) -> Store:
    settings = Settings.from_parameters(parameters, is_v2=True)
    with _importing():
        from ._v2.store import open_store  # python-etcd is imported only where it is needed

    return open_store(settings, parameters.on_waiting)


def _check_v2(parameters: RendezvousParameters) -> None:
    Settings.from_parameters(parameters, is_v2=True)


def _open_hosted(parameters: RendezvousParameters) -> Store:
    with _importing():
        from ._hosted.store import open_store  # h2 and protobuf are imported only where they are needed

    return open_store(parameters)


_SETTINGS = {
    "dial_timeout": "how long one member of the cluster may take to answer before another is asked [1; etcd-v2: 2]",
    "key_ttl": "how long etcd keeps the keys of a job whose agents are all dead [600, or twice store_outage_timeout]",
    "member_ttl": "how long etcd keeps the entry of an agent that was killed; at least 2 [30]",
    "prefix": "what the names of all keys begin with [quorate]",
    "protocol": "http or https [what the endpoint and the certificates say]",
    "ca_cert": "file with the certificates that etcd's own is checked against [the system's]; or cacert",
    "cert": "file with this node's certificate [none]; or ssl_cert",
    "key": "file with the key of cert [none]; or ssl_cert_key",
    "user": "name of the user of etcd [none]",
    "password": "its password [the variable QUORATE_ETCD_PASSWORD]",
    **dict.fromkeys(("cacert", "ssl_cert", "ssl_cert_key"), "TorchElastic's name of a setting of TLS [none]"),
}


_HOSTED_SETTINGS = {
    **_SETTINGS,
    "election_timeout": "after how long without its leader the job's own etcd elects another [0.5]",
    "member_lost_timeout": "after how long without an answer a member of the job's own etcd is removed [30]",
    "etcd_binary": "the etcd program [QUORATE_ETCD_BINARY, else the system's, else that of the extra hosted]",
    "data_dir": "where the job's own etcd keeps its data while the agent runs [memory, if it has 256 MB of room]",
    "bind_address": "what a member listens at [the addresses of its name]",
    "peer_port": "the port at which the members of the job's own etcd reach each other [the endpoint's port + 1]",
}


@final
class _Plugin:
    """The object that the entry point names."""

    @hookimpl
    def quorate_register_rendezvous(self) -> Iterable[RendezvousBackend]:
        """Offer ``etcd``, ``etcd-v2`` and ``etcd-hosted``."""
        return [
            RendezvousBackend(
                name="etcd",
                summary="an etcd cluster (API v3), which outlives every node of the job",
                open_store=_open_v3,
                check=_check_v3,
                settings=_SETTINGS,
                reads_other_settings=False,
            ),
            RendezvousBackend(
                name="etcd-v2",
                summary="etcd's API v2, for clusters that still serve it (etcd 3.5 and older, --enable-v2=true)",
                open_store=_open_v2,
                check=_check_v2,
                settings=_SETTINGS,
                reads_other_settings=False,
            ),
            RendezvousBackend(
                name="etcd-hosted",
                summary="an etcd cluster that agents of the job run themselves, on 1, 3 or 5 of its machines",
                open_store=_open_hosted,
                check=lazy_function(f"{__name__}._hosted.names", "check"),
                hosted_by_job=True,
                settings=_HOSTED_SETTINGS,
                reads_other_settings=False,
            ),
        ]


plugin = _Plugin()
