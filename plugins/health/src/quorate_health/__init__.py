"""The health server of an agent, and the checks of its node.

Only what decides whether something is wanted lives here; each part is imported when it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

from quorate.catalogue import CliOption, HealthCheck, ServiceBackend
from quorate.hookspecs import hookimpl

if TYPE_CHECKING:
    from quorate.services import AgentService, AgentView

    from ._checks import Nodes

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


def _set_checks(text: str, settings: dict[str, Any]) -> None:
    from ._check_flags import names_of

    settings["health_checks"] = names_of(text)


def _set_limits(text: str, settings: dict[str, Any]) -> None:
    from ._check_flags import limits_of

    settings["health_check_conf"] = limits_of(text)


def _set_command(text: str, settings: dict[str, Any]) -> None:
    from ._check_flags import command_of

    settings["health_check_cmd"] = command_of(text)


@final
class _Plugin:
    """What the entry point names."""

    def __init__(self) -> None:
        self._nodes: Nodes | None = None  # made when it is asked for

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
            CliOption(
                "health-checks",
                "what of this node is checked before each join: all, none, or names, -NAME for all but that; "
                "see docs/health.md [all]",
                apply=_set_checks,
            ),
            CliOption("health-check-conf", "limits of these checks: NAME=NUMBER,...", apply=_set_limits),
            CliOption(
                "health-check-cmd",
                "a command that is a check too: anything but exit code 0 means that this node is unhealthy",
                apply=_set_command,
            ),
        ]

    @hookimpl
    def quorate_register_service(self) -> Iterable[ServiceBackend]:
        """Offer the health server, which runs only where a port was given, and what cleans up after the checks."""
        return [
            ServiceBackend("health", "health, metrics and a status page over HTTP", _start_server),
            ServiceBackend("node-checks", "ends with the agent what its checks have begun", self._start_cleaner),
        ]

    @hookimpl
    def quorate_register_health_check(self) -> Iterable[HealthCheck]:
        """Offer the checks of the node."""
        from ._checks import make_checks

        return make_checks(self._remembered())

    def _start_cleaner(self, agent: AgentView) -> AgentService | None:
        from ._checks import cleaner_of

        return cleaner_of(self._remembered(), agent)

    def _remembered(self) -> Nodes:
        if self._nodes is None:
            from ._checks import Nodes

            self._nodes = Nodes()
        return self._nodes


plugin = _Plugin()
