"""The driver of the rendezvous machine: what its threads do when something raises.

What does not live here: the driver on real backends, which the conformance kit and whole jobs test.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import pytest

from quorate.errors import FailureKind
from quorate.records import NodeRecord
from quorate.rendezvous import InMemoryStore, Write, order_nodes
from quorate.rendezvous._driver import Driver
from quorate.rendezvous._protocol import Join, Output, RendezvousFailed, RoundJoined, Settings
from quorate.timeouts import Timeouts

DEADLINE_SECONDS = 30.0


def test_the_rendezvous_thread_does_not_end_in_silence() -> None:
    outputs: SimpleQueue[Output] = SimpleQueue()

    def emit(output: Output) -> None:
        if isinstance(output, RoundJoined):
            raise ZeroDivisionError("surprise")
        outputs.put(output)

    driver = Driver(Settings(1, 1), InMemoryStore, order_nodes, lambda summary, waiting: False, emit)
    driver.start()
    driver.post(Join(NodeRecord("a", "default", 1)))
    try:
        output = outputs.get(timeout=DEADLINE_SECONDS)
    finally:
        driver.close(DEADLINE_SECONDS)
    assert isinstance(output, RendezvousFailed)
    assert output.kind is FailureKind.UNEXPECTED
    assert "ZeroDivisionError: surprise" in output.problem


class _Attentive(InMemoryStore):
    """Notes in which order it learns of what a node has sent."""

    return_timeout = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.learnt: list[str] = []

    def set_last_words(self, writes: Sequence[Write]) -> None:
        self.learnt.append("words of a member" if any("ended" in write.key for write in writes) else "other words")

    def put(self, key: str, value: bytes) -> None:
        if "heartbeat/r" in key:
            self.learnt.append("heartbeat of a member")
        super().put(key, value)


def test_a_member_says_its_last_words_before_its_first_heartbeat() -> None:
    """A node that has read this heartbeat no longer reads the last words of the member's ticket."""
    joined, store, settings = threading.Event(), _Attentive(), Settings(1, 2, Timeouts(last_call_timeout=0.1))

    def emit(output: Output) -> None:
        if isinstance(output, RoundJoined):
            joined.set()

    driver = Driver(settings, lambda: store, order_nodes, lambda summary, waiting: False, emit)
    driver.start()
    driver.post(Join(NodeRecord("a", "default", 1)))
    assert joined.wait(DEADLINE_SECONDS)
    driver.close(DEADLINE_SECONDS)
    assert store.learnt.index("words of a member") < store.learnt.index("heartbeat of a member")


#: Registers what runs last at the end of the interpreter, then leaves a driver that waits in its store.
NEVER_CLOSED = """
import atexit, os, sys, threading

def report():
    rest = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print("threads left:", rest, flush=True)

atexit.register(report)

from quorate.records import NodeRecord
from quorate.rendezvous import InMemoryStore, order_nodes
from quorate.rendezvous._driver import Driver
from quorate.rendezvous._protocol import Join, RoundJoined, Settings

joined = threading.Event()
driver = Driver(
    Settings(1, 1), InMemoryStore, order_nodes, lambda summary, waiting: False,
    lambda output: joined.set() if isinstance(output, RoundJoined) else None,
)
driver.start()
driver.post(Join(NodeRecord("a", "default", 1)))
joined.wait()
"""
AS_IT_IS = ""
FORKED = """
pid = os.fork()
if pid == 0:
    sys.exit()  # the child has the driver, and none of its threads
_, status = os.waitpid(pid, 0)
assert status == 0, status
"""


@pytest.mark.parametrize("more", [AS_IT_IS, FORKED], ids=["as it is", "after a fork"])
def test_no_thread_of_a_driver_that_was_never_closed_meets_the_end_of_the_interpreter(more: str) -> None:
    """A thread that came back from a C++ library then would abort the process."""
    done = subprocess.run(
        [sys.executable, "-c", NEVER_CLOSED + more], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.splitlines()) == {"threads left: []"}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("odd")], ids=repr)
def test_a_store_that_raises_while_it_is_closed_is_named(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unclosable:
        def __init__(self) -> None:
            self._store = InMemoryStore()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def close(self) -> None:
            raise error

    outputs: SimpleQueue[Output] = SimpleQueue()
    driver = Driver(Settings(1, 1), Unclosable, order_nodes, lambda summary, waiting: False, outputs.put)
    driver.start()
    driver.post(Join(NodeRecord("a", "default", 1)))
    while not isinstance(outputs.get(timeout=DEADLINE_SECONDS), RoundJoined):
        pass
    driver.close(DEADLINE_SECONDS)
    assert f"the rendezvous store could not be closed: {type(error).__name__}" in capsys.readouterr().err
