"""Opens an installed rendezvous backend by name."""

from __future__ import annotations

from typing import Any, TypeGuard

from ._isolation import call_plugin, checked_answer
from .catalogue import PluginKind
from .cut_off import CUT_OFF_SETTINGS
from .errors import UsageError
from .job_token import AUTH_SETTING, TOKEN_FILE_VARIABLE, Auth, job_token_of, parse_auth
from .net import is_local_name, named_endpoints
from .notices import warn
from .plugins import PluginHost, get_host
from .rendezvous import RendezvousBackend, RendezvousHandler, RendezvousParameters
from .rendezvous._api import DERIVED_SETTING
from .rendezvous._port import PORT_RANGE_SETTING, port_range
from .text import near_names, without_passwords
from .timeouts import setting_names

__all__ = ["get_rendezvous_handler"]


def get_rendezvous_handler(parameters: RendezvousParameters, host: PluginHost | None = None) -> RendezvousHandler:
    """Return the handler of the installed backend ``parameters.backend``; makes no connection yet.

    Raises:
        UnknownBackendError: no plugin offers it; the message names the installed backends, and the pip command.
        UsageError: the backend refuses the parameters.
        PluginError: the backend raised what it must not, or opened what is not a handler.
    """
    host = host or get_host()
    backend: RendezvousBackend = host.choose(PluginKind.RENDEZVOUS, parameters.backend)
    _check_settings(parameters, backend)
    if PORT_RANGE_SETTING in parameters.config:
        port_range(parameters.config[PORT_RANGE_SETTING])
    if backend.check is not None:
        call_plugin(f"rendezvous backend {backend.name!r}", backend.check, parameters)
    _check_protection(parameters, backend)
    if backend.open_handler is not None:
        what = f"rendezvous backend {backend.name!r}"
        return checked_answer(what, _is_handler, "a RendezvousHandler", backend.open_handler, parameters)
    from .rendezvous import StoreRendezvousHandler  # keeps the protocol off the path of jobs without a store

    return StoreRendezvousHandler(parameters, backend, host)


def _is_handler(answer: Any) -> TypeGuard[RendezvousHandler]:
    return isinstance(answer, RendezvousHandler)


#: Settings that the core or several backends read, besides the timeouts.
_COMMON_SETTINGS = frozenset({"rank", "is_host", "keep", AUTH_SETTING, DERIVED_SETTING, PORT_RANGE_SETTING})
#: What programs written for TorchElastic pass to any backend.
_ELASTIC_SETTINGS = frozenset({"store_type", "use_libuv", "nnodes", "use_agent_store"})

#: How like a known name a misspelling of it is: one letter more, less or exchanged.
_MISSPELLING_LIKENESS = 0.85


def _check_settings(parameters: RendezvousParameters, backend: RendezvousBackend) -> None:
    """Refuse settings that nothing reads, with the name that may have been meant.  Raises UsageError."""
    known = {*setting_names(), *CUT_OFF_SETTINGS, *_COMMON_SETTINGS, *backend.settings}
    offered = sorted(known - {DERIVED_SETTING})
    for name in parameters.config:
        if name in known or name in _ELASTIC_SETTINGS:
            continue
        near = near_names(name, offered, likeness=_MISSPELLING_LIKENESS if backend.reads_other_settings else 0.6)
        if near or not backend.reads_other_settings:
            remedy = f"did you mean {near[0]}?" if near else f"it reads {', '.join(offered)}"
            raise UsageError(
                f"the rendezvous backend {backend.name!r} has no setting {name!r} (--rdzv-conf, rdzv_configs); {remedy}"
            )


def _check_protection(parameters: RendezvousParameters, backend: RendezvousBackend) -> None:
    """Refuse a job that must be protected and cannot be; warn of one that others can reach and is not."""
    token = job_token_of(parameters.config)
    if parameters.max_nodes == 1:
        return
    auth = parse_auth(parameters.get(AUTH_SETTING, Auth.AUTO))
    if auth is Auth.REQUIRED and backend.open_store is None:
        raise UsageError(
            f"--rdzv-auth=required, but the rendezvous backend {backend.name!r} opens no store that could be signed; "
            "choose another --rdzv-backend"
        )
    is_local = all(is_local_name(each.host) for each in named_endpoints(parameters.endpoint))
    if token is None and auth is Auth.AUTO and not is_local:
        warn(
            "this job has no job token: every program that can reach "
            f"{without_passwords(parameters.endpoint)} can join, read or end it. "
            f"Set {TOKEN_FILE_VARIABLE} (see docs/security.md), or --rdzv-auth=off to accept that"
        )
