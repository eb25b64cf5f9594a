"""Completes the reports of a node that waits: tries the endpoint, asks the plugins, and passes the report on.

Trying an endpoint takes seconds, so that each report has a short thread of its own; one runs at a time.
What does not live here: when reports are due, and what the protocol knows (``_waiting``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import final

from attrs import evolve

from .._isolation import described
from ..reach import describe_reach, local_endpoint_hint
from ..records import RendezvousWaiting


@final
class Reporting:
    """Completes the reports of one node.

    Arguments:
        endpoint: where the nodes meet.
        spans_hosts: whether more than one node may take part.
        goes_on: asks the plugins whether this node goes on waiting.
        deliver: receives the completed report, on the report's thread.
        stop: called with a sentence if a plugin decided that this node does not go on.
    """

    def __init__(
        self,
        endpoint: str,
        spans_hosts: bool,
        goes_on: Callable[[RendezvousWaiting], bool],
        deliver: Callable[[RendezvousWaiting], None],
        stop: Callable[[str], None],
    ) -> None:
        self._endpoint, self._spans_hosts = endpoint, spans_hosts
        self._goes_on, self._deliver, self._stop = goes_on, deliver, stop
        self._is_busy = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def complete(self, report: RendezvousWaiting, has_store: bool) -> None:
        """Complete ``report`` and pass it on, unless the one before is still being completed.  Does not block.

        Arguments:
            has_store: the store has answered before, so that the endpoint is known to lead to it.
        """
        if self._is_closed or not self._is_busy.acquire(blocking=False):
            return
        thread = threading.Thread(target=self._run, args=(report, has_store), name="quorate-waiting", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            self._is_busy.release()
            raise
        self._thread = thread

    def close(self, timeout: float) -> None:
        """Complete no further report, and wait for the one that is being completed."""
        self._is_closed = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self, report: RendezvousWaiting, has_store: bool) -> None:
        try:
            report = self._completed(report, has_store)
            goes_on = self._goes_on(report)
        except BaseException as error:  # the report matters more than what completes it
            report, goes_on = evolve(report, problem=f"{report.problem} ({described(error)})"), True
        finally:
            self._is_busy.release()
        if self._is_closed:
            return
        if goes_on:
            self._deliver(report)
        else:
            self._stop(report.reason)

    def _completed(self, report: RendezvousWaiting, has_store: bool) -> RendezvousWaiting:
        reason, problem = report.reason, report.problem
        if (not has_store or problem) and (tried := describe_reach(self._endpoint)):
            reason, problem = f"{reason}; {tried}", problem or tried
        # A store that has answered and no longer does was the right one.
        may_be_wrong = self._spans_hosts and report.nodes < 2 and not (has_store and report.problem)
        hint = local_endpoint_hint(self._endpoint) if may_be_wrong else ""
        return evolve(report, endpoint=self._endpoint, problem=problem, reason=f"{reason}. {hint}" if hint else reason)
