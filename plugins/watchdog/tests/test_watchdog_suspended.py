"""Timers while workers stand still, or while the agent does: that time does not count.

What does not live here: all else about timers (``test_watchdog_timers``).
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quorate.clock import monotonic
from quorate.events import AgentPhaseDetails
from quorate.proc import start_time_of
from quorate.records import AgentPhase, Event
from quorate_watchdog._timekeeper import Timekeeper
from quorate_watchdog._timers import Timer, TimerKey

from .conftest import DEADLINE_SECONDS, NODE, View, Watch, Work, timers_of, wait_until


def test_frozen_workers_are_not_reported_and_get_their_time_back(view: View, watch: Watch, work: Work) -> None:
    """The agent freezes workers while it is cut off from the store (``when_cut_off=freeze``)."""

    def enter(phase: str, was: str) -> None:
        details = AgentPhaseDetails(AgentPhase(phase), AgentPhase(was))
        service.observe(Event(details.name, "", NODE, 0, details))

    service = watch()
    work(service, "from quorate_watchdog import expires\nwith expires(after=2.0, scope='step'): wait()")
    wait_until(lambda: len(timers_of(service)) == 1)
    deadline = timers_of(service).next_deadline()
    enter("frozen", "running")
    with pytest.raises(queue.Empty):
        view.reports.get(timeout=2.3)
    enter("running", "frozen")
    wait_until(lambda: timers_of(service).next_deadline() >= deadline + 2.3)
    assert view.reports.empty()


@pytest.mark.parametrize(("frozen_seconds", "ends_meanwhile"), [(1.6, True), (2.7, False)], ids=["ended", "goes on"])
def test_a_suspended_agent_reports_no_worker_for_that_time(
    view: View, work: Work, frozen_seconds: float, ends_meanwhile: bool
) -> None:
    """What was released meanwhile is read before anything is judged; what goes on is prolonged."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import View, NODE, wait_until
from quorate.records import Event
from quorate_watchdog._service import WatchdogService
from quorate_watchdog._timekeeper import Timekeeper
view = View()
service = WatchdogService(view)
service.observe(Event("workers.started", "", NODE, 0, {}))
print(service.worker_environment["QUORATE_TIMER_CHANNEL"], flush=True)
view.has(int(sys.stdin.readline()))
wait_until(lambda: len(service._server._timekeeper.timers) == 1)
print("taken", flush=True)
scope = view.report().scope
print(scope, view.reports.empty(), flush=True)
sys.stdin.readline()
service.close()
"""
    folder = str(Path(__file__).parent)
    agent = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        worker = work(
            None,
            """
from quorate_watchdog import expires
step = expires(after=1.2, scope='step')
step.__enter__(); say('in'); wait()
step.__exit__(None, None, None)
say('out'); wait()
with expires(after=0.1, scope='last'): wait()
""",
            QUORATE_TIMER_CHANNEL=agent.stdout.readline().strip(),
        )
        agent.stdin.write(f"{worker.pid}\n")
        assert worker.next_word() == "in"
        assert agent.stdout.readline().strip() == "taken"
        os.kill(agent.pid, signal.SIGSTOP)
        if ends_meanwhile:
            worker.go_on()
            assert worker.next_word() == "out"
        with pytest.raises(subprocess.TimeoutExpired):
            agent.wait(frozen_seconds)  # the step's time passes
        os.kill(agent.pid, signal.SIGCONT)
        if not ends_meanwhile:
            worker.go_on()
            assert worker.next_word() == "out"
        worker.go_on()
        assert agent.stdout.readline().strip() == "last True"
        agent.stdin.write("\n")
        assert agent.wait(DEADLINE_SECONDS) == 0
    finally:
        agent.kill()
        agent.wait()
        agent.stdin.close()
        agent.stdout.close()


def test_an_agent_that_is_late_every_time_reports_all_the_same(view: View, work: Work) -> None:
    """It is slow, and not suspended: a machine that is short of time for hours must not hide a hang."""
    worker = work(None, "wait()")
    timekeeper = Timekeeper(view, [])
    key = TimerKey(worker.pid, start_time_of(worker.pid), 1)
    for _ in range(2):  # once it was on time it may be suspended again
        late = 0
        while view.reports.empty():
            now = monotonic()
            timekeeper.timers.set(key, Timer(now - 2.0, 1.0, "step"))
            timekeeper.take([], now - 2.0)
            late += 1
            assert late < 10
        assert late > 1
        assert view.report().scope == "step"
