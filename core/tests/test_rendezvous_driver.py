"""The driver of the rendezvous machine: what its threads do when something raises.

What does not live here: the driver on real backends, which the conformance kit and whole jobs test.
"""

from __future__ import annotations

from queue import SimpleQueue

from quorate.errors import FailureKind
from quorate.records import NodeRecord
from quorate.rendezvous import InMemoryStore, order_nodes
from quorate.rendezvous._driver import Driver
from quorate.rendezvous._protocol import GaveUp, Join, Joined, Output, Settings

DEADLINE_SECONDS = 30.0


def test_the_rendezvous_thread_does_not_end_in_silence() -> None:
    outputs: SimpleQueue[Output] = SimpleQueue()

    def emit(output: Output) -> None:
        if isinstance(output, Joined):
            raise ZeroDivisionError("surprise")
        outputs.put(output)

    driver = Driver(Settings(1, 1), InMemoryStore, order_nodes, lambda summary, waiting: False, emit)
    driver.start()
    driver.post(Join(NodeRecord("a", "default", 1)))
    try:
        output = outputs.get(timeout=DEADLINE_SECONDS)
    finally:
        driver.close(DEADLINE_SECONDS)
    assert isinstance(output, GaveUp)
    assert output.kind is FailureKind.UNEXPECTED
    assert "ZeroDivisionError: surprise" in output.problem
