"""Runs the checks of an agent's node: before each join and, with an interval, repeatedly while workers run.

Checks run on threads of their own; everything else here is called by the agent's thread, which also measures how long
they take.  What does not live here: what a check is (:class:`quorate.catalogue.HealthCheck`), and what follows from its
answer (the machine).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import final

from .._isolation import call_here, described, shown
from ..catalogue import HealthCheck
from ..clock import monotonic
from ..services import AgentView
from . import _protocol as protocol
from ._services import as_sentence

#: When a check takes longer than this, another thread begins the checks behind it.
_SLOW_CHECK_SECONDS = 0.05


@final
class Checks:
    """The checks of one node.

    Arguments:
        checks: the checks.
        view: the argument of each.
        wake: has the agent's thread call :meth:`advance` soon; called from other threads.
        interval: seconds between the end of one round of checks and the next one; 0: only when asked for.
    """

    def __init__(
        self, checks: Sequence[HealthCheck], view: AgentView, wake: Callable[[], None], interval: float
    ) -> None:
        self._checks, self._view, self._wake, self._interval = tuple(checks), view, wake, interval
        self._round: _Round | None = None
        self._is_asked = False
        self._due: float | None = None

    def begin(self) -> protocol.Input | None:
        """Check once; :meth:`advance` returns the answer, or this method where there is nothing to check."""
        if not self._checks:
            return protocol.NodeChecked()
        self._is_asked = True
        if self._round is None:
            self._round = _Round(self._checks, self._view, self._wake)
        return None

    def wake_at(self) -> float | None:
        """Return when :meth:`advance` has to be called although nothing has happened; ``None``: never."""
        return self._due if self._round is None else self._round.wake_at(monotonic())

    def advance(self, now: float) -> protocol.Input | None:
        """Begin what is due; return an answer if there is one."""
        if self._round is None:
            if self._due is not None and self._due <= now:
                self._due = None
                self._round = _Round(self._checks, self._view, self._wake)
            return None
        problems = self._round.advance(now)
        if problems is None:
            return None
        was_asked, self._is_asked, self._round = self._is_asked, False, None
        if was_asked:
            self._due = now + self._interval if self._interval > 0 else None
            return protocol.NodeChecked(problems)
        if problems:
            return protocol.NodeUnhealthy("; ".join(problems))  # reported once; the next join checks again
        self._due = now + self._interval
        return None

    def close(self) -> None:
        """Begin no further check.  A check that is stuck keeps its thread until it answers or the process ends."""
        if self._round is not None:
            self._round.cancel()


@final
class _Round:
    """Every check once, begun when this is made.

    One thread runs the checks one after another, which is enough where each answers at once.  Whenever a check is slow,
    another thread goes on with the rest; a check that is stuck on a dead file system delays nothing but its own answer.
    """

    def __init__(self, checks: Sequence[HealthCheck], view: AgentView, wake: Callable[[], None]) -> None:
        self._checks, self._view, self._wake = checks, view, wake
        self._waiting = deque(enumerate(checks))
        self._begun: dict[int, float] = {}
        self._found: dict[int, str] = {}  # empty: no problem
        self._next_thread_at = 0.0
        self._start_thread(monotonic())

    def wake_at(self, now: float) -> float:
        if self._waiting:
            return self._next_thread_at
        return min((self._deadline(number, now) for number in self._unanswered()), default=now)

    def advance(self, now: float) -> tuple[str, ...] | None:
        """Return the problems, in the order of the checks, once all have answered or timed out."""
        for number in self._unanswered():
            if number in self._begun and self._deadline(number, now) <= now:
                check = self._checks[number]
                problem = f"{check.name}: no answer within {check.timeout_seconds:g} s ({check.summary})"
                self._found.setdefault(number, problem)
        if len(self._found) == len(self._checks):
            return tuple(problem for _, problem in sorted(self._found.items()) if problem)
        if self._waiting and self._next_thread_at <= now:
            self._start_thread(now)
        return None

    def cancel(self) -> None:
        self._waiting.clear()

    def _start_thread(self, now: float) -> None:
        self._next_thread_at = now + _SLOW_CHECK_SECONDS
        threading.Thread(target=self._run_checks, name="quorate-check", daemon=True).start()

    def _run_checks(self) -> None:
        while True:
            try:
                number, check = self._waiting.popleft()
            except IndexError:
                self._wake()
                return
            self._begun[number] = monotonic()
            self._found.setdefault(number, _answer(check, self._view))

    def _unanswered(self) -> list[int]:
        return [number for number in range(len(self._checks)) if number not in self._found]

    def _deadline(self, number: int, now: float) -> float:
        return self._begun.get(number, now) + self._checks[number].timeout_seconds


def _answer(check: HealthCheck, view: AgentView) -> str:
    try:
        problem = call_here(check.check, view)
        if problem is not None and not isinstance(problem, str):
            problem = f"the check answered {shown(problem)}, which is neither a sentence nor None"
        return f"{check.name}: {as_sentence(problem)}" if problem else ""
    except BaseException as error:  # on a thread of its own, where no Ctrl-C arrives
        return f"{check.name}: the check raised {described(error)}"
