"""Runs agents as real processes and lets tests and workers talk: plans, host processes, results, ears and gates.

A *host process* runs one agent in its main thread (as a launcher would, signals included) or several in threads (one
process instead of seven, where the promise does not care).  Everything waits for events, with a deadline.  What does
not live here: the fixtures (``conftest``), the workers (``workers``), the backends (``backends``).
"""

from __future__ import annotations

import fcntl
import importlib
import json
import multiprocessing
import os
import pickle
import select
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quorate import (
    DefaultLogsSpecs,
    LocalElasticAgent,
    PluginHost,
    RendezvousHandler,
    RendezvousParameters,
    RunResult,
    WorkerSpec,
    get_rendezvous_handler,
)
from quorate.proc import children_of
from quorate.testing import open_descriptors

from .backends import Backend

__all__ = [
    "DEADLINE",
    "PROMPT",
    "TOKEN",
    "Ear",
    "Gate",
    "Host",
    "Job",
    "Outcome",
    "Plan",
    "processes_with",
    "wait_for_end",
]

#: Seconds after which anything that was waited for counts as never coming.
DEADLINE = 60.0
#: Seconds within which what must happen at once has happened: the promise is one, busy machines need more.
PROMPT = 5.0
#: The environment variable that marks everything a test has started.
TOKEN = "QUORATE_TEST_TOKEN"


@dataclass(frozen=True)
class Plan:
    """One agent.  ``rdzv``, ``spec``, ``agent`` and ``logs`` are further keyword arguments of what they are named for.

    ``plugins`` and ``change_handler`` are ``module:attribute`` names: plugins to bring along, and a function that is
    given the rendezvous handler before the run.
    """

    backend: str
    endpoint: str
    run_id: str
    entrypoint: Callable[..., Any] | str
    args: tuple[Any, ...] = ()
    nodes: tuple[int, int] = (1, 1)
    role: str = "trainer"
    workers: int = 1
    max_restarts: int = 0
    rdzv: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    change_handler: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one agent ended; ``ended_at`` is a second of the machine's monotonic clock."""

    result: RunResult | None
    error: BaseException | None
    remaining_restarts: int
    total_execution_time: float
    ended_at: float
    state: str = ""

    @property
    def values(self) -> dict[int, Any]:
        """The return values of an agent that succeeded."""
        assert self.error is None, self.error
        assert self.result is not None
        assert not self.result.is_failed(), self.result
        return self.result.return_values

    @property
    def failed(self) -> RunResult:
        """The result of an agent whose job failed."""
        assert self.error is None, self.error
        assert self.result is not None
        assert self.result.is_failed(), self.result
        return self.result


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def run_plan(plan: Plan) -> Outcome:
    """Run one agent in this thread."""
    agent: LocalElasticAgent | None = None
    handler: RendezvousHandler | None = None
    result, error = None, None
    ended_at = 0.0
    try:
        host = PluginHost(extra=[(name, _find(name)) for name in plan.plugins])
        parameters = RendezvousParameters(plan.backend, plan.endpoint, plan.run_id, *plan.nodes, **plan.rdzv)
        handler = get_rendezvous_handler(parameters, host)
        if plan.change_handler:
            _find(plan.change_handler)(handler)
        spec = WorkerSpec(plan.role, plan.workers, handler, plan.entrypoint, plan.args, plan.max_restarts, **plan.spec)
        agent = LocalElasticAgent(spec, DefaultLogsSpecs(**plan.logs), host=host, **plan.agent)
        result = agent.run(plan.role)
    except Exception as caught:
        error = caught
        traceback.print_exc()
    finally:
        ended_at = time.monotonic()
        if handler is not None:
            handler.shutdown()
    remaining, seconds, state = -1, -1.0, ""
    if agent is not None:
        remaining, seconds = agent.remaining_restarts, agent.total_execution_time
        state = agent.get_worker_group().state.value
    return Outcome(result, error, remaining, seconds, ended_at, state)


def host_main(connection: Connection, plans: Sequence[Plan], console: str, environment: Mapping[str, str]) -> None:
    descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.update(environment)
    tempfile.tempdir = None
    outcomes: list[Outcome | None] = [None] * len(plans)

    def run(index: int) -> None:
        outcomes[index] = run_plan(plans[index])

    before = _sockets()
    if len(plans) == 1:
        run(0)
    else:
        threads = [threading.Thread(target=run, args=(index,), name=f"agent-{index}") for index in range(len(plans))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # By value: a tensor must not come as a descriptor of this process, which ends now.
    connection.send_bytes(pickle.dumps((outcomes, _left_for_good(before))))
    connection.close()


def _sockets() -> set[str]:
    kinds = ("socket:", "anon_inode:[eventpoll]", "anon_inode:[pidfd]")
    return {descriptor for descriptor in open_descriptors() if descriptor.partition(" ")[2].startswith(kinds)}


def _left_for_good(sockets: set[str]) -> list[str]:
    """Say what is left once libraries with threads of their own, such as gRPC, have closed what they were told to."""
    ticker = threading.Event()
    end = time.monotonic() + 5.0
    while (left := _left_behind(sockets)) and time.monotonic() < end:
        ticker.wait(0.01)
    return left


def _left_behind(sockets: set[str]) -> list[str]:
    """Say what the agents of this process have left in it."""
    found = [f"thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    found += [f"descriptor {name}" for name in sorted(_sockets() - sockets)]
    return found + [f"child {pid} {command_of(pid)}" for pid in children() if not _serves_multiprocessing(pid)]


def _serves_multiprocessing(pid: int) -> bool:
    """Whether it is one of the standard library's own servers, which end with the process that they serve."""
    return "multiprocessing.forkserver" in command_of(pid) or "multiprocessing.resource_tracker" in command_of(pid)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children() -> set[int]:
    """Return the children of this process, zombies included."""
    return children_of(os.getpid())


class Host:
    """One process with one or more agents in it."""

    def __init__(self, plans: Sequence[Plan], folder: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        self.console_path = folder / f"console-{os.urandom(4).hex()}"
        self._receiver, sender = context.Pipe(duplex=False)
        arguments = (sender, list(plans), str(self.console_path), dict(environment))
        self._process = context.Process(target=host_main, args=arguments, daemon=False)
        self._process.start()
        sender.close()
        self._outcomes: list[Outcome] | None = None
        self.is_killed = False

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def outcomes(self, seconds: float = DEADLINE) -> list[Outcome]:
        """Wait for the end of all its agents; the process must end cleanly and leave nothing behind."""
        if self._outcomes is None:
            assert self._receiver.poll(seconds), f"the agents still run after {seconds} s:\n{self.console()}"
            try:
                self._outcomes, left = pickle.loads(self._receiver.recv_bytes())
            except EOFError:
                raise AssertionError(f"the agents' process died:\n{self.console()}") from None
            self._process.join(seconds)
            assert self._process.exitcode == 0, self.console()
            assert not left, f"left behind: {left}\n{self.console()}"
        return self._outcomes

    def outcome(self, seconds: float = DEADLINE) -> Outcome:
        """Wait for the end of its only agent."""
        (outcome,) = self.outcomes(seconds)
        return outcome

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> float:
        """Kill the process as a power cut would; returns the monotonic second."""
        self.is_killed = True
        at = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(DEADLINE)
        return at

    def console(self) -> str:
        """Return what its agents, and their workers through them, have printed so far."""
        return self.console_path.read_text(errors="replace") if self.console_path.exists() else ""

    def close(self) -> None:
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self._process.join(DEADLINE)
        self._process.close()
        self._receiver.close()


class Ear:
    """A named pipe that workers tell facts to, one JSON object a line (see ``workers.tell``)."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._buffer = b""
        self.heard: list[dict[str, Any]] = []

    def hear(self, count: int, seconds: float = DEADLINE, **facts: Any) -> list[dict[str, Any]]:
        """Wait until ``count`` messages with these facts have come, and return them in order."""
        end = time.monotonic() + seconds
        while len(found := self.all(**facts)) < count:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"heard {found} and not {count} times {facts}; in all: {self.heard}"
            *lines, self._buffer = (self._buffer + os.read(self._descriptor, 65536)).split(b"\n")
            self.heard += [json.loads(line) for line in lines]
        return found

    def all(self, **facts: Any) -> list[dict[str, Any]]:
        """Return the messages with these facts that have been read so far."""
        return [message for message in self.heard if facts.items() <= message.items()]

    def close(self) -> None:
        os.close(self._descriptor)


class Gate:
    """Holds workers back (``workers.pass_gate``) until it is opened, or this process ends."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def open(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._descriptor)


class Job:
    """One job of a test: its endpoint, its hosts, and the plans of its agents."""

    def __init__(self, backend: Backend, endpoint: str, folder: Path) -> None:
        self.backend, self.endpoint, self.folder = backend, endpoint, folder
        self.token = os.urandom(8).hex()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log_dir = folder / "logs"
        self.environment = {TOKEN: self.token, "TMPDIR": str(self.temporary), "GLOO_SOCKET_IFNAME": "lo"}
        self.hosts: list[Host] = []
        rdzv = {"last_call_timeout": 0.3, "lease_timeout": 10.0, "join_timeout": DEADLINE, "linger_timeout": 5.0}
        self._plan = Plan(backend.name, endpoint, f"job-{self.token}", "true", rdzv=rdzv)
        self._plan = replace(self._plan, logs={"log_dir": str(self.log_dir)}, spec={"shutdown_timeout": 20.0})

    def plan(self, entrypoint: Callable[..., Any] | str, *args: Any, **changes: Any) -> Plan:
        """Return an agent's plan; mappings are added to the usual ones, everything else replaces it."""
        for name in ("rdzv", "spec", "agent", "logs"):
            changes[name] = {**getattr(self._plan, name), **changes.get(name, {})}
        return replace(self._plan, entrypoint=entrypoint, args=args, **changes)

    def start(self, *plans: Plan, **environment: str) -> Host:
        """Start one process that runs all of ``plans``."""
        host = Host(plans, self.folder, {**self.environment, **environment})
        self.hosts.append(host)
        return host

    def run(self, *plans: Plan, **environment: str) -> list[Outcome]:
        """Run all of ``plans`` in one process to their end."""
        return self.start(*plans, **environment).outcomes()

    def start_in_order(self, ear: Ear, *plans: Plan) -> list[Host]:
        """Start a process per plan, the next one when the first worker of the one before has told ``started``.

        The first one hosts the store, where an agent does.
        """
        hosts = []
        for index, plan in enumerate(plans):
            hosts.append(self.start(as_store_host(plan) if index == 0 else as_store_client(plan)))
            ear.hear(1, event="started", group_world_size=index + 1)
        return hosts

    def close(self) -> None:
        for host in self.hosts:
            host.close()


def as_store_host(plan: Plan) -> Plan:
    """Have this agent serve the store, where agents do."""
    return replace(plan, rdzv={**plan.rdzv, "is_host": True})


def as_store_client(plan: Plan) -> Plan:
    """Have another agent serve the store, where agents do."""
    return replace(plan, rdzv={**plan.rdzv, "is_host": False})


def processes_with(token: str) -> dict[int, str]:
    """Return pid -> command of every process that descends from a test's agents."""
    mark = f"{TOKEN}={token}".encode()
    found = {}
    for pid in _pids():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[pid] = command_of(pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def wait_for_end(pids: Sequence[int], seconds: float = DEADLINE) -> None:
    """Fail unless all processes have ended within ``seconds``."""
    poller = select.poll()
    watched: dict[int, int] = {}
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        watched[descriptor] = pid
        poller.register(descriptor, select.POLLIN)
    end = time.monotonic() + seconds
    try:
        while watched:
            ready = poller.poll(max(0.0, end - time.monotonic()) * 1000)
            assert ready, f"still running after {seconds} s: {sorted(watched.values())}"
            for descriptor, _ in ready:
                poller.unregister(descriptor)
                del watched[descriptor]
                os.close(descriptor)
    finally:
        for descriptor in watched:
            os.close(descriptor)
