"""The node's checks: which there are, which are wanted, and what they measure against.

What does not live here: how each one looks (``_node``, ``_memory``, ``_command``, ``_gpu``) and how the flags are read
(``_check_flags``).  The core runs the checks, each under its time-out.
"""

from __future__ import annotations

import os
from _weakref import ref  # weakref's own, without what else that module brings (0.4 ms of a launch)
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from quorate.catalogue import HealthCheck

from . import _node
from ._node import Clock, StoreWatch

if TYPE_CHECKING:
    from quorate.records import Event
    from quorate.services import AgentService, AgentView

    from ._command import Command
    from ._gpu import Gpus

__all__ = ["DEFAULTS", "LONGEST_COMMAND_SECONDS", "NAMES", "Node", "Nodes", "cleaner_of", "make_checks"]

#: Setting -> limit, as ``--health-check-conf`` names them; ``None``: not judged unless somebody gives a number.
DEFAULTS: Mapping[str, float | None] = {
    "disk_free_mb": 50.0,
    "memory_free_mb": 64.0,
    "open_files": 256.0,
    "clock_step_s": 60.0,
    "store_latency_ms": None,
    "gpus": None,
    "gpu_ecc_errors": 0.0,
    "gpu_temperature_c": None,
    "command_timeout_s": 30.0,
}

#: The most that ``command_timeout_s`` may be.
LONGEST_COMMAND_SECONDS = 3600.0

#: What has to exist for a GPU of NVIDIA's to be there at all; asking NVML takes a thousand times as long.
GPU_DEVICE = "/dev/nvidiactl"


@final
class Node:
    """What the checks of one agent remember from one time to the next.

    Arguments:
        settings: of the launch: ``health_check_conf`` (limits by name, over the defaults), ``health_checks`` (names of
            those wanted; absent: all), ``health_check_cmd`` (the words of the user's command).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.limits: dict[str, float | None] = {**DEFAULTS, **settings.get("health_check_conf", {})}
        self.wanted = frozenset(settings.get("health_checks", NAMES))
        self.words = tuple(settings.get("health_check_cmd", ()))
        self.clock = Clock()
        self.store = StoreWatch()
        self._command: Command | None = None
        self._gpus: Gpus | None = None
        self._closed = False

    def limit(self, name: str) -> float:
        """Return a limit that has a default."""
        value = self.limits[name]
        assert value is not None
        return value

    def run_command(self, agent: AgentView) -> str | None:
        if not self.words or self._closed:
            return None
        if self._command is None:
            from ._command import Command

            self._command = Command(self.words)
        return self._command.check(self.limit("command_timeout_s"))

    def look_at_gpus(self, agent: AgentView) -> str | None:
        wanted = self.limits["gpus"]
        if not os.path.exists(GPU_DEVICE) or self._closed:
            return f"no NVIDIA GPU is here, but gpus={wanted:g} are expected" if wanted else None
        if self._gpus is None:
            from ._gpu import Gpus

            self._gpus = Gpus()
        return self._gpus.check(wanted, self.limit("gpu_ecc_errors"), self.limits["gpu_temperature_c"])

    def close(self) -> None:
        """End the command, if it runs, and let go of the GPUs."""
        self._closed = True
        if self._command is not None:
            self._command.close()
        if self._gpus is not None:
            self._gpus.close()


_Look = Callable[[Node, "AgentView"], "str | None"]

#: In the order in which they run: those that answer at once come first.
_LOOKS: Mapping[str, tuple[str, float, _Look]] = {
    "open_files": ("limit of open files", 10.0, lambda node, agent: _node.open_files(node.limit("open_files"))),
    "clock": ("no step of the wall clock", 10.0, lambda node, agent: node.clock.check(node.limit("clock_step_s"))),
    "memory": ("free memory", 10.0, lambda node, agent: _node.memory(node.limit("memory_free_mb"))),
    "log_dir": ("folder for logs", 10.0, lambda node, agent: _node.log_dir(agent)),
    "disk": ("free disk space", 10.0, lambda node, agent: _node.disk(agent, node.limit("disk_free_mb"))),
    "store": ("rendezvous store", 70.0, lambda node, agent: node.store.check(agent, node.limits["store_latency_ms"])),
    "gpu": ("NVIDIA GPUs", 60.0, Node.look_at_gpus),
    "command": ("--health-check-cmd", LONGEST_COMMAND_SECONDS + 10.0, Node.run_command),
}

#: The names that ``--health-checks`` knows.
NAMES: tuple[str, ...] = tuple(_LOOKS)


@final
class Nodes:
    """The :class:`Node` of each agent of this process, for as long as the agent lives.  Any thread may ask."""

    def __init__(self) -> None:
        self._nodes: dict[ref[AgentView], Node] = {}

    def of(self, agent: AgentView) -> Node:
        """Return the node of ``agent``, the same one each time."""
        node = self._nodes.get(ref(agent))
        return self._nodes.setdefault(ref(agent, self._forget), Node(agent.settings)) if node is None else node

    def _forget(self, agent: ref[AgentView]) -> None:
        self._nodes.pop(agent, None)


def make_checks(nodes: Nodes) -> list[HealthCheck]:
    """Return all checks; what one agent's remember is kept in ``nodes``."""
    return [
        HealthCheck(name, summary, _bind(nodes, name, look), seconds)
        for name, (summary, seconds, look) in _LOOKS.items()
    ]


@final
class _Cleaner:
    """A service for its end only."""

    worker_environment: Mapping[str, str] = {}

    def __init__(self, node: Node) -> None:
        self._node = node

    def observe(self, event: Event) -> None:
        pass

    def close(self) -> None:
        self._node.close()


def cleaner_of(nodes: Nodes, agent: AgentView) -> AgentService | None:
    """Return what ends a command that runs, and lets go of GPUs, when the agent ends; ``None`` if neither can be."""
    if not agent.settings.get("health_check_cmd") and not os.path.exists(GPU_DEVICE):
        return None
    return _Cleaner(nodes.of(agent))


def _bind(nodes: Nodes, name: str, look: _Look) -> Callable[[AgentView], str | None]:
    def check(agent: AgentView) -> str | None:
        node = nodes.of(agent)
        return look(node, agent) if name in node.wanted else None

    return check
