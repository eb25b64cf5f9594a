"""Descriptors that are kept back, so that what must still be done can be done when all others are taken."""

from __future__ import annotations

import os
from typing import final

from quorate.proc import hold, release


@final
class Reserve:
    """``count`` descriptors that nothing uses until :meth:`release`.

    Raises:
        OSError: fewer are left; none is kept then.
    """

    def __init__(self, count: int) -> None:
        self._descriptors: list[int] = []
        try:
            for _ in range(count):
                self._descriptors.append(hold(os.open(os.sep, os.O_PATH | os.O_CLOEXEC)))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give them back."""
        while self._descriptors:
            release(self._descriptors.pop())
