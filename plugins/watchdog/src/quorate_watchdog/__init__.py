"""Finds workers that hang.  Workers call :class:`expires` and :func:`heartbeat`; the rest runs beside the agent.

Names are imported when they are first used: a worker does not need what the agent loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from ._client import expires as expires, heartbeat as heartbeat
    from ._plugin import plugin as plugin

__all__ = ["expires", "heartbeat", "plugin"]

__getattr__ = lazy_exports(globals(), {"expires": "_client", "heartbeat": "_client", "plugin": "_plugin"})
