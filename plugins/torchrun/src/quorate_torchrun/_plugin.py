"""The plugin object, which the entry point names."""

from __future__ import annotations

from typing import final

__all__ = ["plugin"]


@final
class _Plugin:
    """Offers nothing to agents; the distribution offers a Python interface and a command."""


plugin = _Plugin()
