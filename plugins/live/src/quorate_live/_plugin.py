"""The entry point's object: the flag that says how long a live worker may take to leave its world."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from quorate.catalogue import CliOption
from quorate.hookspecs import hookimpl
from quorate.timeouts import RELEASE_TIMEOUT_SECONDS, parse_seconds


def _note_release_timeout(text: str, settings: dict[str, Any]) -> None:
    settings["release_timeout"] = parse_seconds("--release-timeout", text)


@final
class _Plugin:
    """What the entry point names."""

    @hookimpl
    def quorate_register_cli_options(self) -> Iterable[CliOption]:
        """Offer the flag; the agents of programs read the setting ``release_timeout``."""
        return [
            CliOption(
                "release-timeout",
                "how long a live worker may take to leave its world at the end of a round before it is stopped; "
                "0: all workers are stopped",
                f"{RELEASE_TIMEOUT_SECONDS:g}",
                _note_release_timeout,
                metavar="SECONDS",
            )
        ]


plugin = _Plugin()
