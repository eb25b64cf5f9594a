"""``python -m benchmarks elastic``: what it takes when nodes come, go and die, side by side with torchrun.

Several agents on this machine are the nodes of one job; a worker says when it runs and how large its world is, over a
named pipe (the monotonic clock is the same for all processes of a machine).  Agents are started through the
command line, as users start them.  What does not live here: launching on a single node (``launch.py``).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, final

from ._processes import BenchmarkError, free_port, program
from ._report import Report, Samples, bound, compile_sources

MEMBER = str(Path(__file__).with_name("_member.py"))
START_SECONDS = 90.0


@final
@dataclass(frozen=True)
class Line:
    """What one worker said: when (monotonic seconds), and its place."""

    at: float
    pid: int
    group_rank: int
    group_world_size: int
    rank: int
    world_size: int


@final
@dataclass(frozen=True)
class Contender:
    """A launcher with a rendezvous; ``command`` takes ``--nnodes``, the port where nodes meet, and more arguments."""

    name: str
    command: Callable[[str, int], list[str]]


def contenders() -> list[Contender]:
    """Return ours with both of its own stores, and torchrun where it is installed."""
    quorate, torchrun = program("quorate"), program("torchrun")
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")

    def ours(backend: str) -> Callable[[str, int], list[str]]:
        return lambda nodes, port: [
            *(quorate, "run", f"--nnodes={nodes}", "--nproc-per-node=1", "--max-restarts=3"),
            *(f"--rdzv-backend={backend}", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=bench"),
        ]

    found = [Contender("quorate", ours("c10d")), Contender("quorate, tcp", ours("tcp"))]
    if torchrun is not None:
        found.append(
            Contender(
                "torchrun",
                lambda nodes, port: [
                    *(torchrun, f"--nnodes={nodes}", "--nproc-per-node=1", "--max-restarts=3"),
                    *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=bench"),
                ],
            )
        )
    return found


@final
class Job:
    """One job; ends, with all its processes, at the end of the ``with`` block."""

    def __init__(self, contender: Contender, nodes: str) -> None:
        self._contender, self._nodes, self._port = contender, nodes, free_port()
        self._agents: list[subprocess.Popen[bytes]] = []
        self._errors: list[IO[bytes]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._pipe = os.path.join(self._folder.name, "lines")
        os.mkfifo(self._pipe)
        self._reader = os.open(self._pipe, os.O_RDWR)  # for both, so that it never ends
        self._buffer = b""
        self._workers: set[int] = set()

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self._agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in self._agents:
            try:
                agent.wait(40)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        for pid in self._workers:  # torchrun's outlive an agent that was killed
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for file in self._errors:
            file.close()
        os.close(self._reader)
        self._folder.cleanup()

    def start_agent(self) -> float:
        """Start one more node; returns the monotonic second before it."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._errors.append(errors)
        # The first one hosts the store, so that it is known which one does not.
        is_host = f"--rdzv-conf=is_host={int(len(self._agents) == 0)}"
        command = [*self._contender.command(self._nodes, self._port), is_host, MEMBER, self._pipe]
        began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}
        self._agents.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        )
        return began

    def signal_agent(self, index: int, number: int) -> float:
        """Signal an agent; returns the monotonic second before it."""
        began = time.monotonic()
        self._agents[index].send_signal(number)
        return began

    def wait_for(self, world: int, lines: int, seconds: float) -> float | None:
        """Return when the last of ``lines`` workers said that it runs in a world of ``world``; ``None`` if too late."""
        deadline, seen = time.monotonic() + seconds, 0
        for line in self._lines(deadline):
            seen += line.world_size == world
            if seen == lines:
                return line.at
        return None

    def _lines(self, deadline: float) -> Iterator[Line]:
        while True:
            while b"\n" in self._buffer:
                text, _, self._buffer = self._buffer.partition(b"\n")
                at, *numbers = text.split()
                line = Line(float(at), *map(int, numbers))
                self._workers.add(line.pid)
                yield line
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            self._buffer += os.read(self._reader, 4096)

    def last_words(self) -> str:
        """Return what the agents have written last."""
        words = []
        for file in self._errors:
            file.seek(0)
            words.append(file.read()[-300:].decode(errors="replace").strip())
        return " | ".join(words) or "nothing"


@contextmanager
def running(contender: Contender, nodes: str, agents: int) -> Iterator[Job]:
    """Give a job all of whose ``agents`` run in one world."""
    with Job(contender, nodes) as job:
        for _ in range(agents):
            job.start_agent()
        if job.wait_for(agents, agents, START_SECONDS) is None:
            raise BenchmarkError(f"{contender.name}: {agents} agents did not get together: {job.last_words()}")
        yield job


# --- measurements ---------------------------------------------------------------------------------------------------


def last_join(contender: Contender, agents: int) -> float | None:
    """Seconds from the last agent's start until all workers run, less what a job of one node takes for the same."""
    with Job(contender, "1") as alone:
        began = alone.start_agent()
        single = alone.wait_for(1, 1, START_SECONDS)
    with Job(contender, str(agents)) as job:
        for _ in range(agents - 1):
            job.start_agent()
        time.sleep(4.0)  # until they wait: torchrun and c10d import torch first
        last = job.start_agent()
        whole = job.wait_for(agents, agents, START_SECONDS)
    if single is None or whole is None:
        raise BenchmarkError(f"{contender.name} did not start {agents} agents")
    return (whole - last) - (single - began)


def departure(contender: Contender, number: int, seconds: float) -> float | None:
    """Seconds from the signal to an agent (not the store's host) until the survivor's worker runs alone."""
    with running(contender, "1:2", 2) as job:
        began = job.signal_agent(1, number)
        at = job.wait_for(1, 1, seconds)
        return None if at is None else at - began


def arrival(contender: Contender, seconds: float) -> float | None:
    """Seconds from a second agent's start until both run together, less what a job of one node takes to start."""
    with Job(contender, "1") as alone:
        began = alone.start_agent()
        single = alone.wait_for(1, 1, START_SECONDS)
    with running(contender, "1:2", 1) as job:
        last = job.start_agent()
        whole = job.wait_for(2, 2, seconds)
        if single is None or whole is None:
            return None
        return (whole - last) - (single - began)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks elastic", description="Nodes come, go and die.")
    parser.add_argument("--quick", action="store_true", help="ours alone where torchrun takes minutes, fewer runs")
    parser.add_argument("--repeats", type=int, help="runs of each contender per measurement")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    repeats, patience = options.repeats or (2 if options.quick else 5), 10.0 if options.quick else 60.0
    compile_sources()
    report = Report("elastic", repeats)
    everybody = contenders()
    try:
        for agents in (2,) if options.quick else (2, 4, 8):
            title = f"last of {agents} nodes joined to all workers running, s"
            samples = collect(everybody, repeats, lambda it, count=agents: last_join(it, count))  # type: ignore[misc]
            report.add(title, samples, [bound("at most 60 ms", samples, 0.060)])
        killed = collect(everybody, repeats, lambda it: departure(it, signal.SIGKILL, patience), patience)
        report.add("agent killed to survivor in its new world, s", killed, [bound("at most 3.5 s", killed, 3.5)])
        stopped = collect(everybody, repeats, lambda it: departure(it, signal.SIGTERM, patience), patience)
        report.add(
            "agent told to stop to survivor in its new world, s", stopped, [bound("at most 0.3 s", stopped, 0.3)]
        )
        joined = collect(everybody, repeats, lambda it: arrival(it, patience), patience)
        report.add("node joins a running 1:2 job to both in the bigger world, s", joined, [bound("0.3 s", joined, 0.3)])
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def collect(
    everybody: Sequence[Contender],
    repeats: int,
    measure: Callable[[Contender], float | None],
    patience: float = START_SECONDS,
) -> Samples:
    """Measure in turns; whoever was too late once is not asked again, and counts with the time that was waited."""
    samples: Samples = {}
    late: set[str] = set()
    for _ in range(repeats):
        for contender in everybody:
            if contender.name in late:
                continue
            seconds = measure(contender)
            if seconds is None:
                late.add(contender.name)
            samples.setdefault(contender.name, []).append(patience if seconds is None else seconds)
    for name in late:
        print(
            f"{name} had not done it after {patience:g} s (median of ours: {statistics.median(samples['quorate']):g} s)"
        )
    return samples


if __name__ == "__main__":
    sys.exit(main())
