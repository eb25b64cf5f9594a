"""Many nodes of one job in one thread, over one connection to work and a few to wait.

``BACKEND ENDPOINT RUN_ID HERE FIRST ALL``.  Each node is the protocol machine and interpreter of a real agent.  Only
the threads are left out, because thousands of threads on a few cores would be all that is measured.  Prints ``ready``,
waits for a line, then prints when its last node had its assignment (monotonic seconds), and the store operations and
bytes of its nodes.
"""

from __future__ import annotations

import gc
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import final

from quorate.catalogue import PluginKind
from quorate.job_token import job_token_of
from quorate.plugins import get_host
from quorate.records import NodeRecord, RoundSummary
from quorate.rendezvous import RendezvousParameters, Store, order_nodes, protect
from quorate.rendezvous._driver import perform
from quorate.rendezvous._executor import Interpreter, PendingWait
from quorate.rendezvous._protocol import Call, Input, Join, Output, Reply, RoundJoined, Settings
from quorate.rendezvous._store import InterruptibleStore
from quorate.timeouts import Timeouts


@final
class Node:
    """One node: its interpreter, and its connection to what the crowd shares."""

    def __init__(self, crowd: Crowd, number: int, everywhere: int) -> None:
        self._crowd = crowd
        self._record = NodeRecord(f"node-{number}", "default", 1, host=f"host-{number % 64}", port=1 + number % 60_000)
        # No node is lost here, and heartbeats would disturb the measurement.
        timeouts = Timeouts(join_timeout=600.0, lease_timeout=600.0, store_outage_timeout=600.0)
        settings = Settings(everywhere, everywhere, timeouts)
        self.interpreter = Interpreter(settings, self, time.monotonic, 600.0)
        self.desk = PendingWait()
        self.joined = False

    def join(self) -> None:
        self.interpreter.feed(Join(self._record))

    def call(self, call: Call) -> None:
        self._crowd.calls.append((self, call))

    def wait_for(self, key: str | None) -> None:
        old = self.desk.key
        self.desk.set_key(key)
        if not self.joined:
            self._crowd.want(old, key, self)

    def emit(self, output: Output, /) -> None:
        if isinstance(output, RoundJoined):
            self.joined = True
            self._crowd.joined += 1

    def decide_ranks(self, nodes: Sequence[NodeRecord], previous: Sequence[str], /) -> Sequence[str]:
        return order_nodes(nodes, previous)

    def decide_rescale(self, summary: RoundSummary, waiting: int, /) -> bool:
        return False


@final
class Waiter:
    """A connection to wait with, for one key after another."""

    def __init__(self, store: Store, come: queue.SimpleQueue[tuple[str, bytes | None]]) -> None:
        self._store, self._come = store, come
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.key = ""
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, key: str) -> None:
        """Wait for ``key`` from now on, instead of the key before."""
        self.key = key
        self._asked.put(key)
        self.stop()

    def stop(self) -> None:
        """Wait for nothing."""
        if isinstance(self._store, InterruptibleStore):
            self._store.interrupt()

    def _run(self) -> None:
        while True:
            key = self._asked.get()
            while self.key == key:
                value = self._store.wait(key, 600.0)
                if value is not None:
                    self._come.put((key, value))
                    break


@final
class Crowd:
    """All nodes of this process, and the connections that they share."""

    def __init__(self, parameters: RendezvousParameters, here: int, first: int, everywhere: int) -> None:
        open_store = get_host().choose(PluginKind.RENDEZVOUS, parameters.backend).open_store
        token = job_token_of(parameters.config)

        def opened() -> Store:
            return protect(open_store(parameters), parameters.run_id, token, print)

        self._work: Store = opened()
        self.calls: deque[tuple[Node, Call]] = deque()
        self.joined = self.operations = self.bytes = 0
        self._wanted: dict[str, list[Node]] = {}
        self._come: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
        # All but the sealer wait for one and the same key.
        self._many, self._one = (Waiter(opened(), self._come) for _ in range(2))
        self._nodes = [Node(self, first + number, everywhere) for number in range(here)]

    def want(self, old: str | None, key: str | None, node: Node) -> None:
        """Give ``node`` the value of ``key`` once it is there, and no longer that of ``old``."""
        if old is not None and node in self._wanted.get(old, ()):
            self._wanted[old].remove(node)
        if key is None:
            return
        waiter = self._many if key.endswith("/sealed") else self._one
        if waiter.key != key:
            waiter.ask(key)
        self._wanted.setdefault(key, []).append(node)

    def run(self) -> float:
        """Have all nodes join; returns the monotonic second at which the last one had its assignment."""
        for node in self._nodes:
            node.join()
        while self.joined < len(self._nodes):
            if self.calls:
                self._perform(*self.calls.popleft())
                continue
            due = min((at for node in self._nodes if (at := node.interpreter.next_due_at()) is not None), default=None)
            try:
                key, value = self._come.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._tick()
                continue
            for node in self._wanted.pop(key, []):
                node.desk.begin()
                event = node.desk.finish(key, value)
                if event is not None:
                    node.interpreter.feed(event)
        return time.monotonic()

    def _perform(self, node: Node, call: Call) -> None:
        answer = perform(self._work, call)
        self.operations += 1
        self.bytes += sum(map(len, call.keys)) + sum(map(len, call.values))
        if isinstance(answer, list):
            self.bytes += sum(len(value) for value in answer if value is not None)
        node.interpreter.feed(Reply(call, answer))

    def _tick(self) -> None:
        for node in self._nodes:
            event: Input | None
            while (event := node.interpreter.due_input(False)) is not None:
                node.interpreter.feed(event)


def main() -> None:
    backend, endpoint, run_id = sys.argv[1:4]
    here, first, everywhere = map(int, sys.argv[4:7])
    parameters = RendezvousParameters(
        backend, endpoint, run_id, everywhere, everywhere, "127.0.0.1", is_host=False, operation_timeout=120.0
    )
    crowd = Crowd(parameters, here, first, everywhere)
    # A full collection of what torch has loaded takes some 50 ms, at a time that nothing controls.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.process_time()
    at = crowd.run()
    print(at, crowd.operations, crowd.bytes, time.process_time() - began, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
