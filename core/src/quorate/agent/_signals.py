"""Receives signals through a wake-up descriptor, so that no handler interrupts the agent's thread.

What does not live here: what a signal leads to (``_machine``).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import final

from ..errors import UsageError

__all__ = ["SignalCatcher"]

_Handler = Callable[[int, FrameType | None], object] | int | None


@final
class SignalCatcher:
    """Catches signals while it is installed; every one of them makes :meth:`fileno` readable.

    ``names`` are those of the user, ``more`` the numbers of further ones.

    Where handlers cannot be installed (not the main thread) it does nothing; ``is_installed`` is then false.

    Raises:
        UsageError: an unknown signal name.
    """

    def __init__(self, names: Sequence[str], more: Iterable[int] = ()) -> None:
        self._numbers = list(dict.fromkeys([*map(_number, names), *more]))
        self._old: dict[int, _Handler] = {}
        self._old_wakeup = -1
        self._reader = self._writer = -1
        self.is_installed = False

    def install(self) -> None:
        """Begin to catch."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            self._old[number] = signal.signal(number, _ignore)
        self.is_installed = True

    def fileno(self) -> int:
        """Return the descriptor, -1 if nothing is installed."""
        return self._reader

    def take(self) -> list[int]:
        """Return the caught signals since the last call, in order."""
        try:
            data = os.read(self._reader, 4096)
        except BlockingIOError:
            return []
        return [number for number in data if number in self._numbers]

    def restore(self) -> None:
        """Put back what was there before."""
        if not self.is_installed:
            return
        self.is_installed = False
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = self._writer = -1


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wake-up descriptor receives the signal."""


def _number(name: str) -> int:
    text = name.strip().upper()
    try:
        number = int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    except KeyError:
        raise UsageError(
            f"{name!r} is not a signal; write names such as SIGTERM,SIGINT in --signals-to-handle"
        ) from None
    if number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        raise UsageError(f"{name} cannot be handled; leave it out of --signals-to-handle")
    return number
