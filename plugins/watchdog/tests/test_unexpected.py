"""The watchdog's threads do not end in silence, and no time that a worker asks for ends them."""

from __future__ import annotations

import json
import os
from queue import SimpleQueue
from typing import Any

import pytest

from quorate_watchdog._channels import anonymous_channel
from quorate_watchdog._messages import parse
from quorate_watchdog._server import TimerServer
from quorate_watchdog._silence import SilenceWatch

SECONDS = 30.0


class Agent:
    """Stands for the agent; what it is asked for fails."""

    def __init__(self) -> None:
        self.reports: SimpleQueue[str] = SimpleQueue()

    def snapshot(self) -> Any:
        raise ZeroDivisionError("surprise")

    def report_unhealthy(self, problem: str) -> None:
        self.reports.put(problem)

    def say(self, sentence: str) -> None:
        self.reports.put(sentence)


def _line(**fields: Any) -> bytes:
    record = {"pid": os.getpid(), "namespace": 0, "agent": "a", "rank": 0, "round": 0, **fields}
    return json.dumps(record).encode() + b"\n"


def test_a_timer_thread_that_fails_is_reported() -> None:
    agent: Any = Agent()
    channel = anonymous_channel()
    server = TimerServer(agent, [channel])
    try:
        with open(channel.path, "wb", buffering=0) as pipe:
            pipe.write(_line(timer=1, after=5.0))
        assert agent.reports.get(timeout=SECONDS) == "the watchdog has failed: ZeroDivisionError: surprise"
    finally:
        assert server.close()
        channel.close()


def test_a_silence_thread_that_fails_is_reported() -> None:
    agent: Any = Agent()
    watch = SilenceWatch(agent, 0.1, 0.0)
    try:
        assert agent.reports.get(timeout=SECONDS) == "the watchdog has failed: ZeroDivisionError: surprise"
    finally:
        watch.close()


@pytest.mark.parametrize("after", [3e6, 1e300, 10**300, 10**18])
def test_a_timer_may_be_as_long_as_a_worker_likes(after: float) -> None:
    class Calm(Agent):
        def snapshot(self) -> Any:
            return type("Snapshot", (), {"node_id": "b", "workers": ()})()

    agent: Any = Calm()
    channel = anonymous_channel()
    server = TimerServer(agent, [channel])
    try:
        with open(channel.path, "wb", buffering=0) as pipe:
            pipe.write(_line(timer=1, after=after))
            pipe.write(b"this is not a message\n")
            assert "is not a message" in agent.reports.get(timeout=SECONDS)
            pipe.write(_line(timer=2, after=1.0))
    finally:
        assert server.close()
        channel.close()
    assert agent.reports.empty()


def test_seconds_beyond_any_time_are_bounded() -> None:
    for seconds in (1e300, 10**300):
        message = parse(_line(timer=1, after=seconds))
        assert message is not None
        assert message.seconds == 1e12
