"""Starts, watches and stops worker processes on this machine.

The start methods are ``exec``, ``spawn``, ``fork`` and ``forkserver``.  Nothing but :data:`plugin`, the entry point's
object, is public, and it is imported when it is asked for: a function worker imports this package too, and must not
pay for what only the agent needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._plugin import plugin as plugin

__all__ = ["plugin"]


def __getattr__(name: str) -> Any:
    if name == "plugin":
        from ._plugin import plugin

        return plugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
