"""Ends calls of plugins that keep the main thread of an agent which is told to stop.

The agent learns of a signal on the thread that calls its plugins.  So a plugin that does not return keeps it from
stopping.  A handler of the signal, which Python runs on the same thread, ends the call by an exception.  If the call
has not lasted for too long yet, another signal is sent once it has.  Later calls are treated alike.

What does not live here: what such a signal does otherwise (:mod:`quorate.agent`).
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar, final

from ._isolation import call_here
from .clock import monotonic

_T = TypeVar("_T")
#: What a hook may take at most, as its documentation says.
_LONGEST_CALL_SECONDS = 1.0
#: When to look again at a call that a signal has found between quorate's code and the plugin's.
_MOMENT_SECONDS = 0.05
_active: Interrupter | None = None


class PluginInterrupted(BaseException):
    """Ends a call of a plugin that keeps a thread which has to stop; ``except Exception`` does not catch it."""


def call_interruptibly(function: Callable[..., _T], *arguments: Any, **keywords: Any) -> _T:
    """As :func:`quorate._isolation.call_here`, for a function that has nothing to put in order."""
    return call_within(_LONGEST_CALL_SECONDS, function, *arguments, **keywords)


def call_within(seconds: float, function: Callable[..., _T], /, *arguments: Any, **keywords: Any) -> _T:
    """As :func:`call_interruptibly`, for a function that may take so long where the agent is told to stop.

    Raises:
        PluginInterrupted: it has taken longer, and the agent is told to stop.
    """
    interrupter = _active
    if interrupter is None or threading.current_thread() is not threading.main_thread():
        return call_here(function, *arguments, **keywords)
    interrupter.enter(seconds)
    try:
        return call_here(function, *arguments, **keywords)
    finally:
        interrupter.leave()


@final
class Interrupter:
    """Ends calls, from :meth:`begin` to :meth:`end`, once a signal has come to :meth:`handle`; on the main thread.

    Arguments:
        blocked: signals that the main thread has blocked.  They reach it while it calls a plugin.
    """

    def __init__(self, blocked: Collection[int] = ()) -> None:
        self._blocked = blocked
        #: When each call that goes on began, and when it has lasted for too long; the innermost call is the last.
        self._calls: list[tuple[float, float]] = []
        self._told_by = 0  # the number of the signal
        self._sent = Counter[int]()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._outer: Interrupter | None = None  # of the agent whose plugin runs this one

    def begin(self) -> None:
        """Take charge of all interruptible calls that begin from now on."""
        global _active
        self._outer, _active = _active, self

    def end(self) -> None:
        """Send no signal any more.  The handlers can be replaced then."""
        global _active
        _active = self._outer
        self._ended.set()
        with self._lock:  # the last one has been sent
            pass

    def enter(self, seconds: float) -> None:
        """Note a call that begins."""
        if not self._calls and self._blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._blocked)
        now = monotonic()
        self._calls.append((now, now + seconds))
        if self._told_by:
            self._look_after(seconds)

    def leave(self) -> None:
        """Forget the innermost call."""
        self._calls.pop()
        if not self._calls and self._blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)

    def tell(self, number: int) -> None:
        """Take it that the agent is told to stop by a signal that has come to no handler."""
        self._told_by = number

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Be the handler of a signal that stops the agent.

        Raises:
            PluginInterrupted: a call has lasted for too long.
        """
        self.tell(number)
        if not self._calls:
            return
        began, due = self._calls[-1]
        now = monotonic()
        if now < due or (frame is not None and frame.f_globals is globals()):
            self._look_after(max(due - now, _MOMENT_SECONDS))
            return
        self._look_after(_LONGEST_CALL_SECONDS)  # it may catch the exception
        raise PluginInterrupted(f"it had not returned after {now - began:.0f} s, and this process was told to stop")

    def is_own(self, number: int) -> bool:
        """Return whether a signal that was caught is one of ours, which tells nothing new; each counts once."""
        with self._lock:
            is_own = self._sent[number] > 0
            self._sent[number] -= is_own
        return is_own

    def _look_after(self, seconds: float) -> None:
        # Not by threading, one of whose locks the main thread may have where the signal has found it.
        with suppress(RuntimeError):  # no thread is left; the next signal may find one
            _thread.start_new_thread(self._look, (self._calls[-1], seconds))

    def _look(self, call: tuple[float, float], seconds: float) -> None:
        self._ended.wait(seconds)
        with self._lock:
            if not self._ended.is_set() and any(each is call for each in self._calls[-1:]):
                self._sent[self._told_by] += 1
                signal.pthread_kill(threading.main_thread().ident or 0, self._told_by)
