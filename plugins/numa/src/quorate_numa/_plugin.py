"""The entry point's object: the flag, and the hook that changes how a worker is started.

A launch does not have the settings of its agent.  So a service notes each agent that wants its workers bound, and
the hook finds it by the node id of the round's assignment: one process may run several agents with different settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable
from typing import TYPE_CHECKING, Any, final

from attrs import evolve

from quorate.catalogue import CliOption, ServiceBackend
from quorate.hookspecs import hookimpl
from quorate.records import Assignment, WorkerLaunch
from quorate.services import AgentService, AgentView

from ._modes import SETTING, NumaMode, parse_mode

if TYPE_CHECKING:
    from ._binding import AgentBinding


def _note_mode(text: str, settings: dict[str, Any]) -> None:
    settings[SETTING] = parse_mode(text)


@final
class NumaPlugin:
    """What the entry point names.

    Arguments:
        root: the folder in which ``/sys``, ``/proc`` and ``/dev`` are looked for.
        usable: returns the CPUs that the agent may use (default: those of the calling thread).
    """

    def __init__(self, root: str = "/", usable: Callable[[], Collection[int]] | None = None) -> None:
        self._root, self._usable = root, usable or (lambda: os.sched_getaffinity(0))
        self._agents: dict[str, AgentBinding] = {}

    @hookimpl
    def quorate_register_cli_options(self) -> Iterable[CliOption]:
        """Offer the flag that the core knows and leaves to plugins."""
        help_text = f"bind workers to the CPUs near their device: {', '.join(NumaMode)}"
        return [CliOption("numa-binding", help_text, None, _note_mode, "MODE")]

    @hookimpl
    def quorate_register_service(self) -> Iterable[ServiceBackend]:
        """Offer what notes an agent's setting; it neither waits nor runs anything."""
        return [ServiceBackend("numa", "binds workers to the CPUs near their device", self._start)]

    # A wrapper: what other plugins change about a launch stays, and so does their order.
    @hookimpl(wrapper=True)
    def quorate_decide_launch(
        self, launch: WorkerLaunch, assignment: Assignment
    ) -> Generator[None, WorkerLaunch | None, WorkerLaunch | None]:
        """Bind the worker, unless another plugin has done so."""
        changed = yield
        if not isinstance(changed, (WorkerLaunch, type(None))):
            return changed  # the core reports an answer of another type
        agent = self._agents.get(assignment.node_id)
        decided = launch if changed is None else changed
        if agent is None or decided.cpus is not None:
            return changed
        placement = agent.place(decided, assignment.local_world_size)
        return evolve(decided, cpus=placement.cpus, memory_node=placement.memory_node)

    def _start(self, agent: AgentView) -> AgentService | None:
        wanted = agent.settings.get(SETTING)
        if wanted is None:
            return None
        from ._binding import AgentBinding  # launches that do not ask for it need not pay for it

        node_id = agent.snapshot().node_id
        binding = AgentBinding(
            agent, parse_mode(wanted), self._root, self._usable, lambda: self._agents.pop(node_id, None)
        )
        self._agents[node_id] = binding
        return binding


plugin = NumaPlugin()
