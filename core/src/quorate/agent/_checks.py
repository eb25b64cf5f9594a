"""Runs the checks of an agent's node: before each join and, if asked, while its workers run.

What does not live here: what a check is (:class:`quorate.catalogue.HealthCheck`), and what is done about what it finds
(the machine).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from ..clock import monotonic
from ._protocol import Input, NodeChecked, NodeUnhealthy, Phase

if TYPE_CHECKING:
    from ..catalogue import HealthCheck
    from ..services import AgentView

__all__ = ["Checks"]

#: From here on the checks that wait for a slow one are begun beside it.
_PATIENCE_SECONDS = 0.05
#: How long the end of the run waits for threads that have nothing left to do.
_CLOSE_SECONDS = 1.0


@final
class Checks:
    """The checks of one node, on threads of their own.

    Arguments:
        checks: what to check.
        view: given to each.
        post: takes the result, from another thread.
        interval: seconds between rounds of checks while workers run; 0 for never.
    """

    def __init__(
        self, checks: Sequence[HealthCheck], view: AgentView, post: Callable[[Input], None], interval: float
    ) -> None:
        self._checks, self._view, self._post, self._interval = tuple(checks), view, post, interval
        self._closed = threading.Event()
        self._rounds: set[_Round] = set()
        self._threads: list[threading.Thread] = []
        if self._checks and interval > 0:
            self._start(self._watch)

    def begin(self) -> Input | None:
        """Check once and post the answer; returns it at once where there is nothing to check."""
        if not self._checks:
            return NodeChecked()
        self._start(self._check_once)
        return None

    def close(self) -> None:
        """Stop checking.  A check that is stuck keeps its thread until it answers or the process ends."""
        self._closed.set()
        for each in list(self._rounds):
            each.cancel()
        deadline = monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _start(self, run: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=run, name="quorate-health-checks", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _check_once(self) -> None:
        problems = self._run()
        if not self._closed.is_set():
            self._post(NodeChecked(problems))

    def _watch(self) -> None:
        while not self._closed.wait(self._interval):
            if self._view.snapshot().phase == Phase.CHECKING.value:
                continue  # that is being done
            problems = self._run()
            if problems and not self._closed.is_set():
                self._post(NodeUnhealthy("; ".join(problems)))
                return  # it leaves; should it join again all the same, that check tells again

    def _run(self) -> tuple[str, ...]:
        this = _Round(self._checks, self._view)
        self._rounds.add(this)
        try:
            return () if self._closed.is_set() else this.run()
        finally:
            self._rounds.discard(this)


@final
class _Round:
    """Every check once.

    One helper thread does them one after another, which is all that is needed where each answers at once.  Whenever a
    check takes longer than that, another helper goes on with the rest; so one that is stuck on a dead file system costs
    its time-out and nothing else.
    """

    def __init__(self, checks: Sequence[HealthCheck], view: AgentView) -> None:
        self._checks, self._view = checks, view
        self._waiting = deque(enumerate(checks))
        self._begun: dict[int, float] = {}
        self._found: dict[int, str] = {}  # empty: it is well
        self._moved: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: a helper has ended

    def run(self) -> tuple[str, ...]:
        """Return what is wrong, in the order of the checks; nothing if it was cancelled."""
        self._hire()
        while len(self._found) < len(self._checks):
            try:
                if not self._moved.get(timeout=self._longest_wait()):
                    return ()
            except queue.Empty:
                self._give_up_overdue()
                if self._waiting:
                    self._hire()
        return tuple(problem for _, problem in sorted(self._found.items()) if problem)

    def cancel(self) -> None:
        """Have :meth:`run` return at once; from any thread."""
        self._waiting.clear()
        self._moved.put(False)

    def _hire(self) -> None:
        threading.Thread(target=self._help, name="quorate-check", daemon=True).start()

    def _help(self) -> None:
        while True:
            try:
                number, check = self._waiting.popleft()
            except IndexError:
                self._moved.put(True)
                return
            self._begun[number] = monotonic()
            self._found.setdefault(number, _answer(check, self._view))

    def _longest_wait(self) -> float:
        now = monotonic()
        if self._waiting:
            return _PATIENCE_SECONDS
        return max(0.0, min((self._deadline(number, now) for number in self._unanswered()), default=now) - now)

    def _unanswered(self) -> list[int]:
        return [number for number in range(len(self._checks)) if number not in self._found]

    def _deadline(self, number: int, now: float) -> float:
        return self._begun.get(number, now) + self._checks[number].timeout_seconds

    def _give_up_overdue(self) -> None:
        now = monotonic()
        for number in self._unanswered():
            if number in self._begun and self._deadline(number, now) <= now:
                check = self._checks[number]
                problem = f"{check.name}: no answer within {check.timeout_seconds:g} s ({check.summary})"
                self._found.setdefault(number, problem)


def _answer(check: HealthCheck, view: AgentView) -> str:
    try:
        problem = check.check(view)
    except Exception as error:
        problem = f"the check raised {type(error).__name__}: {error}"
    return f"{check.name}: {problem}" if problem else ""
