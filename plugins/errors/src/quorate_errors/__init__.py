"""Error recorder ``file`` and the classification of how a worker failed.

Public besides the plugin: :func:`write_failure`, which completes an error file with what only the agent knows.
"""

from __future__ import annotations

from ._file import write_failure
from ._plugin import plugin

__all__ = ["plugin", "write_failure"]
