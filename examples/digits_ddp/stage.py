"""The parts of the demonstration: agents as real processes, and the messages of their workers.

The demonstration waits for messages in a named pipe and for processes to end, never for time to pass.  What does not
live here: what is started, killed and expected, and in which order (``demo.py``).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final


class DemoError(Exception):
    """The demonstration failed; the message says what was missing."""


@final
@dataclass(frozen=True)
class Message:
    """One message of a worker.  ``at`` is in seconds on this machine's monotonic clock."""

    kind: str
    at: float
    pid: int
    node: str
    rank: int
    world_size: int
    restart: int
    round: int
    group_rank: int
    epoch: int = 0
    resumed_from: int = 0


@final
class Agent:
    """One ``quorate run`` process; everything it and its workers print goes to its log."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self.may_end = False
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    def last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-15:])

    def close(self) -> None:
        """End it in any state; its workers end with it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


@final
class Stage:
    """The agents that run, and the pipe through which their workers report."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.fifo = output / "progress.fifo"
        self.messages: list[Message] = []
        self.agents: dict[str, Agent] = {}
        os.mkfifo(self.fifo)
        # Open for writing too: the pipe then has no end of file between the workers of two rounds.
        self._descriptor = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self._on_message: Callable[[Message], None] = lambda message: None

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self.agents.values():
            agent.close()
        os.close(self._descriptor)
        self.fifo.unlink()

    def on_message(self, callback: Callable[[Message], None]) -> None:
        """Call ``callback`` with every message from now on."""
        self._on_message = callback

    def start_agent(self, name: str, arguments: Sequence[str]) -> Agent:
        """Start ``quorate run ARGUMENTS`` as the machine called ``name``."""
        command = [sys.executable, "-m", "quorate", "run", *arguments]
        environment = {**os.environ, "DIGITS_NODE": name, "PYTHONUNBUFFERED": "1"}
        agent = Agent(name, command, environment, self.output / f"agent-{name}.log")
        self.agents[name] = agent
        return agent

    def wait_for(self, what: str, condition: Callable[[Message], bool], seconds: float) -> Message:
        """Return the first message from now on that meets ``condition``.

        Raises:
            DemoError: none came within ``seconds``, or an agent ended that should not have.
        """
        deadline = time.monotonic() + seconds
        while True:
            for message in self._read():
                if condition(message):
                    return message
            watched = [agent for agent in self.agents.values() if not agent.may_end]
            ready = _wait([self._descriptor, *(agent.pidfd for agent in watched)], deadline)
            if not ready:
                raise DemoError(f"{what}: not within {seconds:g} s\n{self._logs()}")
            for agent in watched:
                if agent.pidfd in ready and self._descriptor not in ready:
                    code = agent.process.wait()
                    raise DemoError(
                        f"{what}: agent {agent.name} ended before, with exit code {code}\n{agent.last_lines()}"
                    )

    def wait_until_ended(self, agent: Agent, seconds: float) -> int:
        """Return the exit code of ``agent``, reading messages until it ends."""
        deadline = time.monotonic() + seconds
        while True:
            ready = _wait([self._descriptor, agent.pidfd], deadline)
            self._read()
            if agent.pidfd in ready:
                return agent.process.wait()
            if not ready:
                raise DemoError(f"agent {agent.name} did not end within {seconds:g} s\n{self._logs()}")

    def _read(self) -> list[Message]:
        try:
            data = self._rest + os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        *lines, self._rest = data.split(b"\n")
        new = [_parse(line) for line in lines]
        self.messages += new
        for message in new:
            self._on_message(message)
        return new

    def _logs(self) -> str:
        return "\n".join(f"  last lines of {agent.name}:\n{agent.last_lines()}" for agent in self.agents.values())


def _parse(line: bytes) -> Message:
    fields: dict[str, Any] = json.loads(line)
    return Message(**fields)


def _wait(descriptors: Sequence[int], deadline: float) -> set[int]:
    """Return which of ``descriptors`` are ready; none once the deadline is over."""
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}


def kill_and_wait(pid: int, others: Sequence[int], seconds: float) -> tuple[float, float]:
    """Kill ``pid`` with SIGKILL; wait until ``others`` (process ids) have ended too.

    Returns the monotonic second of the kill, and the seconds until the last of the others was gone.

    Raises:
        DemoError: some were still there after ``seconds``.
    """
    watched = {os.pidfd_open(other): other for other in others}
    try:
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while watched:
            ready = _wait(list(watched), killed_at + seconds)
            if not ready:
                raise DemoError(f"processes {sorted(watched.values())} still run {seconds:g} s after their agent died")
            for descriptor in ready:
                os.close(descriptor)
                del watched[descriptor]
        return killed_at, time.monotonic() - killed_at
    finally:
        for descriptor in watched:
            os.close(descriptor)


def hold_port() -> socket.socket:
    """Return a socket that reserves a free loopback port, which a store can share (SO_REUSEADDR)."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder
