"""The ways to bind workers, which ``--numa-binding`` names."""

from __future__ import annotations

from enum import Enum
from typing import final

from quorate.errors import UsageError

#: Where the launch's free settings have the mode: a NumaMode, or its value.
SETTING = "numa_binding"


@final
class NumaMode(str, Enum):
    """Which CPUs a worker gets.  Its home is the NUMA node of its device; without a device, workers are spread."""

    NODE = "node"  # all of its home
    SOCKET = "socket"  # all of the nodes on its home's socket
    EXCLUSIVE = "exclusive"  # a share of its home's cores that no other worker of this agent gets
    CORE_COMPLEX = "core-complex"  # the cores of its home that share one L3 cache

    def __str__(self) -> str:
        return self.value


def parse_mode(value: object) -> NumaMode:
    """Return the mode that ``value`` names.

    Raises:
        UsageError: it names none.
    """
    try:
        return NumaMode(value)
    except ValueError:
        known = ", ".join(NumaMode)
        raise UsageError(f"--numa-binding={value} is not a way to bind workers; known are {known}") from None
