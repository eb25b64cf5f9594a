"""A process that has used rendezvous backends of its own, and then has agents run in children of it.

What it does is one of :data:`HABITS`, and what it does it to are the backends that it is given.  What does not live
here: running an agent (``harness``).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quorate import PluginHost, RendezvousHandler, RendezvousParameters, get_rendezvous_handler

from .backends import loopback_port
from .harness import DEADLINE, Outcome, Plan, host_main

__all__ = ["HABITS", "OWN_PORT", "Used", "run_in_children"]

#: What a parent uses: a backend's name and an endpoint, or OWN_PORT where it is to host the store itself.
Used = tuple[str, str]
#: A port that nobody else has.
OWN_PORT = ""
_Finish = Callable[[], None]
_held = ExitStack()


def _open(used: Used) -> RendezvousHandler:
    """Open a handler of a job of its own, and agree on a round."""
    backend, endpoint = used
    if endpoint == OWN_PORT:
        endpoint = _held.enter_context(loopback_port())
    settings = {"is_host": True, "linger_timeout": 0.1, "last_call_timeout": 0.01}
    parameters = RendezvousParameters(backend, endpoint, f"parent-{os.urandom(4).hex()}", 1, 1, "127.0.0.1", **settings)
    handler = get_rendezvous_handler(parameters, PluginHost())
    assert handler.next_rendezvous().world_size == 1
    return handler


def keeps_open(used: Sequence[Used]) -> _Finish:
    """Its handlers are open, and answer and close well when the children have ended."""
    handlers = [_open(each) for each in used]

    def finish() -> None:
        for handler in handlers:
            assert handler.num_nodes_waiting() == 0
            handler.shutdown()

    return finish


def has_closed(used: Sequence[Used]) -> _Finish:
    """It has closed its handlers."""
    for each in used:
        _open(each).shutdown()
    return lambda: None


_leaked: list[RendezvousHandler] = []


def leaks(used: Sequence[Used]) -> _Finish:
    """It keeps handlers to its end that it never closes, and has lost others, which children find as garbage."""
    gc.disable()
    for each in used:
        _leaked.append(_open(each))
        lost: list[Any] = [_open(each)]
        lost.append(lost)
    return lambda: None


def is_busy(used: Sequence[Used]) -> _Finish:
    """Its other threads use handlers, and open and close them, at the moment of the fork."""
    handlers = [_open(each) for each in used]
    ends = threading.Event()

    def repeat(act: Callable[[], Any]) -> None:
        while not ends.is_set():
            act()

    def come_and_go(each: Used) -> Callable[[], None]:
        return lambda: _open(each).shutdown()

    acts: list[Callable[[], Any]] = [handler.num_nodes_waiting for handler in handlers]
    acts += [come_and_go(each) for each in used]
    threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()

    def finish() -> None:
        ends.set()
        for thread in threads:
            thread.join()
        for handler in handlers:
            handler.shutdown()

    return finish


HABITS = {each.__name__: each for each in (keeps_open, has_closed, leaks, is_busy)}


# --- children ---------------------------------------------------------------------------------------------------------


def _child_main(habit: str, connection: Connection, plan: Plan, console: str, environment: Mapping[str, str]) -> None:
    if habit == leaks.__name__:
        gc.enable()
        gc.collect()  # as it would happen some time
    host_main(connection, [plan], console, environment)


class _Child:
    """One child that runs one agent."""

    def __init__(self, method: str, habit: str, plan: Plan, console: str, environment: Mapping[str, str]) -> None:
        context: Any = multiprocessing.get_context(method)
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_child_main, args=(habit, sender, plan, console, dict(environment)))
        self._process.start()
        sender.close()

    def end(self, deadline: float) -> Outcome | str:
        """Wait for its end; returns what its agent came to, or a sentence about a child that came to no good end."""
        try:
            if not self._receiver.poll(max(0.0, deadline - time.monotonic())):
                return "the agent's process hangs"
            (outcome,), left = pickle.loads(self._receiver.recv_bytes())
            self._process.join(max(0.0, deadline - time.monotonic()))
            code = self._process.exitcode
            if code != 0:
                return "the agent's process does not end" if code is None else f"the agent's process ended with {code}"
            return f"left behind: {left}" if left else outcome
        except EOFError:
            self._process.join(DEADLINE)
            return f"the agent's process died with {self._process.exitcode}"
        finally:
            self._receiver.close()
            if self._process.is_alive():
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.join()
            self._process.close()


def _main(
    connection: Connection,
    habit: str,
    used: Sequence[Used],
    method: str,
    rows: Sequence[Sequence[Plan]],
    console: str,
    environment: Mapping[str, str],
) -> None:
    descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tried here
    os.environ.update(environment)
    finish = HABITS[habit](used)
    told: list[list[Outcome | str]] = []
    for plans in rows:
        children = [_Child(method, habit, plan, console, environment) for plan in plans]
        deadline = time.monotonic() + DEADLINE
        told.append([child.end(deadline) for child in children])
    finish()
    connection.send_bytes(pickle.dumps(told))
    connection.close()


def run_in_children(
    habit: str,
    used: Sequence[Used],
    method: str,
    rows: Sequence[Sequence[Plan]],
    folder: Path,
    environment: Mapping[str, str],
) -> list[list[Outcome | str]]:
    """Have a new parent run ``rows`` of agents, row after row, each agent in a child of its own.

    Returns what each agent came to, or a sentence where its process came to no good end.  The parent itself must end
    well.
    """
    context = multiprocessing.get_context("forkserver")
    console = folder / f"console-{os.urandom(4).hex()}"
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, habit, list(used), method, [list(plans) for plans in rows], str(console), dict(environment))
    process = context.Process(target=_main, args=arguments, daemon=False)
    process.start()
    sender.close()
    try:
        seconds = (1 + len(rows)) * (DEADLINE + 5.0)
        assert receiver.poll(seconds), f"the parent hangs:\n{console.read_text(errors='replace')}"
        try:
            told: list[list[Outcome | str]] = pickle.loads(receiver.recv_bytes())
        except EOFError:
            process.join(DEADLINE)
            told_by_it = console.read_text(errors="replace")
            raise AssertionError(f"the parent died with {process.exitcode}:\n{told_by_it}") from None
        process.join(DEADLINE)
        assert process.exitcode == 0, (
            f"the parent ended with {process.exitcode}:\n{console.read_text(errors='replace')}"
        )
    finally:
        receiver.close()
        process.kill()
        process.join()
        process.close()
    return told
