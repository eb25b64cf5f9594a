"""The health server of an agent, and the checks of its node.

Only what decides whether something is wanted lives here; each part is imported when it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

from quorate.catalogue import CliOption, ServiceBackend
from quorate.hookspecs import hookimpl

if TYPE_CHECKING:
    from quorate.services import AgentService, AgentView

__all__ = ["plugin"]

#: The variable by which TorchElastic's users ask for a health server; workers inherit it.
_PORT_VARIABLE = "TORCHELASTIC_HEALTH_CHECK_PORT"


def _set_port(text: str, settings: dict[str, Any]) -> None:
    from quorate.errors import UsageError

    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise UsageError(f"--health-port={text} is not a port; give a number from 0 (any free port) to 65535")
    settings["health_port"] = int(text)


def _set_host(text: str, settings: dict[str, Any]) -> None:
    settings["health_host"] = text


def _start_server(agent: AgentView) -> AgentService | None:
    if "health_port" not in agent.settings and not agent.environment.get(_PORT_VARIABLE):
        if "health_host" in agent.settings:
            agent.say("--health-host has no effect without --health-port")
        return None
    from ._service import start

    return start(agent, _PORT_VARIABLE)


@final
class _Plugin:
    """What the entry point names."""

    @hookimpl
    def quorate_register_cli_options(self) -> Iterable[CliOption]:
        """Offer the flags of the health server."""
        return [
            CliOption(
                "health-port",
                f"serve health, metrics and status over HTTP at this port; 0: a free one; default: {_PORT_VARIABLE}",
                apply=_set_port,
            ),
            CliOption("health-host", "the address to serve them at (127.0.0.1)", apply=_set_host),
        ]

    @hookimpl
    def quorate_register_service(self) -> Iterable[ServiceBackend]:
        """Offer the health server; it runs only where a port was given."""
        return [ServiceBackend("health", "health, metrics and a status page over HTTP", _start_server)]


plugin = _Plugin()
