"""The health server of an agent, and the checks of its node."""

from __future__ import annotations

from ._plugin import plugin

__all__ = ["plugin"]
