"""Workers and a plugin for the tests of the health server.  Imported by name in worker processes."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from quorate import hookimpl
from quorate.catalogue import ServiceBackend
from quorate.records import Event
from tests.workers import pass_gate, restart_count, tell

PORT_VARIABLE = "TORCHELASTIC_HEALTH_CHECK_PORT"


def wait(ear: str, gate: str) -> str | None:
    """Say that this worker runs, wait, and return the port that it was told of."""
    tell(ear, "started")
    pass_gate(gate)
    return os.environ.get(PORT_VARIABLE)


def beat(ear: str, gate: str) -> None:
    """Show a sign of life through the watchdog, once, and wait."""
    from quorate_watchdog import heartbeat

    heartbeat()
    tell(ear, "started")
    pass_gate(gate)


def print_and_fail_once(ear: str, gates: list[str], words: list[str], message: str) -> int:
    """Print ``words``; the last rank fails on the first attempt, once its gate is open."""
    attempt = restart_count()
    for word in [*words, f"attempt {attempt}"]:
        print(word, flush=True)
        print(word, file=sys.stderr, flush=True)
    tell(ear, "started")
    pass_gate(gates[attempt])
    if attempt == 0 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        raise ValueError(message)
    return attempt


class _TurnMeter:
    """Asks the agent for a turn, again and again, and writes how long each took into a file at the end."""

    worker_environment: Mapping[str, str] = {}

    def __init__(self, agent: Any) -> None:
        self._agent, self._turns = agent, list[float]()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()

    def _measure(self) -> None:
        while not self._closed.wait(0.005):
            seconds = self._agent.turn(30.0)
            self._turns.append(30.0 if seconds is None else seconds)

    def observe(self, event: Event) -> None:
        pass

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        with open(os.environ["TURNS"], "w", encoding="utf-8") as file:
            json.dump(self._turns, file)


class _TurnMeterPlugin:
    @hookimpl
    def quorate_register_service(self) -> Iterable[ServiceBackend]:
        return [ServiceBackend("turn-meter", "measures the agent's turns", _TurnMeter)]


turn_meter = _TurnMeterPlugin()
