"""Workers that live through the end of a round: when one worker dies, the others keep their process and their state.

A training program imports :func:`worlds` from here.  This half needs torch only where it is used with torch.  The
agent's half is in the core, in the start methods and in :data:`plugin`, the entry point's object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.lazy_exports import lazy_exports

from ._errors import StateLostError, WorldEnded
from ._world import World, worlds

if TYPE_CHECKING:
    from ._plugin import plugin as plugin

__all__ = ["StateLostError", "World", "WorldEnded", "plugin", "worlds"]

__getattr__ = lazy_exports(globals(), {"plugin": "_plugin"})
