"""Finds workers that hang.  Workers call :class:`expires` and :func:`heartbeat`; the rest runs beside the agent.

The plugin's object is imported when it is asked for, so that a worker does not pay for what only the agent needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._client import expires as expires
    from ._client import heartbeat as heartbeat
    from ._plugin import plugin as plugin

__all__ = ["expires", "heartbeat", "plugin"]


def __getattr__(name: str) -> Any:
    if name == "plugin":
        from ._plugin import plugin

        return plugin
    if name in __all__:
        from . import _client

        return getattr(_client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
