"""Rendezvous backend ``c10d``: the core's protocol over torch's TCPStore, with one of the nodes as its host.

What lives here is the plugin object alone, which every launch imports.  The backend is imported when it is used, and
torch once a store is opened.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, final

from quorate.catalogue import CliOption, ServiceBackend
from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_function
from quorate.records import Assignment, WorkerLaunch
from quorate.rendezvous import RendezvousBackend
from quorate.services import AgentService, AgentView

if TYPE_CHECKING:
    from ._agent_store import AgentStore

__all__ = ["plugin"]

_SETTING = "agent_store"
_parse_when = lazy_function(f"{__name__}._agent_store", "parse_when")


def _note_when(text: str, settings: dict[str, Any]) -> None:
    settings[_SETTING] = _parse_when(text)


@final
class _Plugin:
    """What the entry point names.  It finds an agent's store by the node id of the round's assignment."""

    def __init__(self) -> None:
        self._stores: dict[str, AgentStore] = {}

    @hookimpl
    def quorate_register_cli_options(self) -> Iterable[CliOption]:
        """Offer the flag for the workers' store."""
        help_text = (
            "who serves the store at MASTER_ADDR:MASTER_PORT; always: the agent; never: the first worker; auto: the "
            "agent for programs of torchft, else the first worker; the same on all nodes; default: auto"
        )
        return [CliOption("agent-store", help_text, None, _note_when, "WHEN")]

    @hookimpl
    def quorate_register_service(self) -> Iterable[ServiceBackend]:
        """Offer what serves it."""
        return [ServiceBackend("agent-store", "serves the workers' store at MASTER_ADDR:MASTER_PORT", self._start)]

    # A wrapper: what other plugins change about a launch stays, and so does their order.
    @hookimpl(wrapper=True)
    def quorate_decide_launch(
        self, launch: WorkerLaunch, assignment: Assignment
    ) -> Generator[None, WorkerLaunch | None, WorkerLaunch | None]:
        """Tell workers that they are clients of it."""
        changed = yield
        store = self._stores.get(assignment.node_id)
        if store is None or not isinstance(changed, (WorkerLaunch, type(None))):
            return changed  # the core reports an answer of another type
        return store.change(launch if changed is None else changed, assignment)

    def _start(self, agent: AgentView) -> AgentService | None:
        from ._agent_store import AgentStore, When  # only once there is an agent

        when = When(agent.settings.get(_SETTING, When.AUTO))
        if when is When.NEVER:
            return None
        node_id = agent.snapshot().node_id
        store = AgentStore(agent, when, lambda: self._stores.pop(node_id, None))
        self._stores[node_id] = store
        return store

    @hookimpl
    def quorate_register_rendezvous(self) -> Iterable[RendezvousBackend]:
        """Offer ``c10d``."""
        return [
            RendezvousBackend(
                name="c10d",
                summary="torch's TCPStore, hosted by the node whose address the endpoint names",
                open_store=lazy_function(f"{__name__}._store", "open_store"),
                bootstrap=lazy_function(f"{__name__}._bootstrap", "TCPStoreBootstrap"),
                check=lazy_function(f"{__name__}._settings", "check_parameters"),
                hosted_by_job=True,
                reads_other_settings=False,
            )
        ]


plugin = _Plugin()
