"""The entry point's object: flags, services and checks.

Loaded at every launch, so what is heavy (waitress, prometheus-client, NVML, subprocess) is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

from quorate.catalogue import CliOption, HealthCheck, ServiceBackend
from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_function
from quorate.services import AgentService, AgentView

from ._check_flags import command_of, limits_of, names_of, port_of
from ._checks import CheckStates, make_checks, make_cleaner

_start = lazy_function("quorate_health._service", "start")

#: TorchElastic's variable for the port of a health server; workers inherit it.
_PORT_VARIABLE = "TORCHELASTIC_HEALTH_CHECK_PORT"


def _setting(name: str, parse: Callable[[str], object] = str) -> Callable[[str, dict[str, Any]], None]:
    def apply(text: str, settings: dict[str, Any]) -> None:
        settings[name] = parse(text)

    return apply


def _start_server(agent: AgentView) -> AgentService | None:
    if "health_port" not in agent.settings and not agent.environment.get(_PORT_VARIABLE):
        if "health_host" in agent.settings:
            agent.say("--health-host has no effect without --health-port")
        return None
    service: AgentService | None = _start(agent, _PORT_VARIABLE)
    return service


@final
class _Plugin:
    """What the entry point names."""

    def __init__(self) -> None:
        self._states = CheckStates()

    @hookimpl
    def quorate_register_cli_options(self) -> Iterable[CliOption]:
        """Offer the flags of the server and of the checks."""
        return [
            CliOption(
                "health-port",
                "serve health, metrics and status over HTTP at this port; 0: a free port; "
                f"default: {_PORT_VARIABLE}, else no server",
                apply=_setting("health_port", port_of),
            ),
            CliOption(
                "health-host",
                "address of the server of --health-port; default: 127.0.0.1",
                apply=_setting("health_host"),
            ),
            CliOption(
                "health-checks",
                "checks of this node before each join: all, none, or names; -NAME: all but that one; default: all; "
                "see docs/health.md",
                apply=_setting("health_checks", names_of),
            ),
            CliOption(
                "health-check-conf",
                "limits of the checks: NAME=NUMBER,...",
                apply=_setting("health_check_conf", limits_of),
            ),
            CliOption(
                "health-check-cmd",
                "command to run as one more check; an exit code other than 0 means that this node is unhealthy",
                apply=_setting("health_check_cmd", command_of),
            ),
        ]

    @hookimpl
    def quorate_register_service(self) -> Iterable[ServiceBackend]:
        """Offer the health server, which runs only where a port was given, and what cleans up after the checks."""
        return [
            ServiceBackend("health", "health, metrics and a status page over HTTP", _start_server),
            ServiceBackend("node-checks", "ends what the checks have started when the agent ends", self._start_cleaner),
        ]

    @hookimpl
    def quorate_register_health_check(self) -> Iterable[HealthCheck]:
        """Offer the checks of the node."""
        return make_checks(self._states)

    def _start_cleaner(self, agent: AgentView) -> AgentService | None:
        return make_cleaner(self._states, agent)


plugin = _Plugin()
