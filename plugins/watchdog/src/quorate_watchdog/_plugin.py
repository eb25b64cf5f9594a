"""The entry point's object: the watchdog and its flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

from quorate.catalogue import CliOption, ServiceBackend
from quorate.errors import UsageError
from quorate.hookspecs import hookimpl

from ._service import WatchdogService


def _seconds(flag: str, setting: str) -> Callable[[str, dict[str, Any]], None]:
    def apply(text: str, settings: dict[str, Any]) -> None:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0.0 <= seconds < 1e9:
            raise UsageError(f"--{flag}={text} is not a number of seconds; 0 turns it off")
        settings[setting] = seconds

    return apply


@final
class _Plugin:
    """What the entry point names."""

    @hookimpl
    def quorate_register_cli_options(self) -> Iterable[CliOption]:
        """Offer the two flags; timers need none."""
        return [
            CliOption(
                "heartbeat-timeout",
                "a worker hangs if this many seconds pass between two calls of quorate_watchdog.heartbeat(); 0: never",
                "0",
                _seconds("heartbeat-timeout", "heartbeat_timeout"),
                metavar="SECONDS",
            ),
            CliOption(
                "hang-after",
                "a worker hangs if it has used no CPU and written no output for this many seconds; 0: never",
                "0",
                _seconds("hang-after", "hang_after"),
                metavar="SECONDS",
            ),
        ]

    @hookimpl
    def quorate_register_watchdog(self) -> Iterable[ServiceBackend]:
        """Offer the watchdog; without timers and flags it is an idle pipe."""
        return [ServiceBackend("watchdog", "timers, heartbeats and silence of workers", WatchdogService)]


plugin = _Plugin()
