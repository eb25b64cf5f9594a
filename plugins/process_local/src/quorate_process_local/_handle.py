"""A descriptor that travels to a worker in a pickle."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, final


@final
class Handle:
    """A descriptor that a worker may be given in a pickle."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], Handle], tuple[Any]]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> Handle:
    return Handle(duplicate.detach())
