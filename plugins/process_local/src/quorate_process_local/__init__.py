"""Starts, watches and stops worker processes on this machine.

The start methods are ``exec``, ``spawn``, ``fork``, ``forkserver`` and ``warm``.  Only :data:`plugin`, the entry
point's object, is public.  It is imported upon its first use: function workers import this package too, without what
only the agent needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from ._plugin import plugin as plugin

__all__ = ["plugin"]

__getattr__ = lazy_exports(globals(), {"plugin": "_plugin"})
