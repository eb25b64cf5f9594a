"""Workers that live through the end of a round: when one worker dies, the others keep their process and their state.

A training program imports :func:`worlds` from here.  This half needs the standard library only, and torch where it is
used with torch; the agent's half is in the core, in the start methods and in :data:`plugin`, the entry point's object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import StateLostError, WorldEnded
from ._world import World, worlds

if TYPE_CHECKING:
    from ._plugin import plugin as plugin

__all__ = ["StateLostError", "World", "WorldEnded", "plugin", "worlds"]


def __getattr__(name: str) -> Any:
    if name != "plugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._plugin import plugin  # needs quorate, which a training program's environment need not have

    return plugin
