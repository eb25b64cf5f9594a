"""``python -m benchmarks elastic``: how long it takes when nodes join, leave and are lost, side by side with torchrun.

Several agents on this machine are the nodes of one job.  A worker writes when it runs, and how large its world is, into
a named pipe (the monotonic clock is the same for all processes of a machine).  Agents have imported everything, torch
included, before they join (``_agent.py``), so the start of an interpreter is not measured.  What does not live here:
launching on a single node (``launch.py``).
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, final

from quorate.proc import children_of
from quorate.testing import free_port
from quorate_rendezvous_etcd import EtcdServer

from ._processes import BenchmarkError, free_port_pair, program
from ._report import OURS, Report, Samples, bound, compile_sources, in_turns

HERE = Path(__file__).parent
MEMBER = str(HERE / "_member.py")
START_SECONDS = 90.0
THREE_HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@final
@dataclass(frozen=True)
class Line:
    """What one worker wrote: when it runs (monotonic seconds), and its ranks."""

    at: float
    pid: int
    group_rank: int
    group_world_size: int
    rank: int
    world_size: int


@final
@dataclass(frozen=True)
class Contender:
    """A launcher with a rendezvous backend."""

    name: str
    launcher: str
    backend: str


#: No launcher at all.
BARE = Contender("python", "python", "")


def contenders() -> list[Contender]:
    """Return ours with both of its own stores, and torchrun where it is installed."""
    found = [Contender("quorate", "quorate", "c10d"), Contender("quorate, tcp", "quorate", "tcp")]
    if program("torchrun") is not None:
        found.append(Contender("torchrun", "torchrun", "c10d"))
    return found


def surviving_contenders() -> list[Contender]:
    """Return ours with the stores that survive the loss of any node."""
    return [Contender(f"quorate, {name}", "quorate", name) for name in ("etcd", "etcd-hosted")]


@final
class Job:
    """One job; ends, with all its processes, at the end of the ``with`` block."""

    def __init__(self, contender: Contender, nodes: str) -> None:
        self._contender, self._nodes = contender, nodes
        self._server = EtcdServer() if contender.backend == "etcd" else None
        if self._server is not None:
            self._server.start()
            self._endpoint = self._server.get_endpoint()
        elif contender.backend == "etcd-hosted":
            self._endpoint = f"{','.join(THREE_HOSTS)}:{free_port_pair(THREE_HOSTS)}"
        else:
            self._endpoint = f"127.0.0.1:{free_port()}"
        self._agents: list[subprocess.Popen[bytes]] = []
        self._errors: list[IO[bytes]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._pipe = os.path.join(self._folder.name, "lines")
        os.mkfifo(self._pipe)
        self._reader = os.open(self._pipe, os.O_RDWR)  # also for writing, so that the pipe never ends
        self._buffer = b""
        self._workers: set[int] = set()
        self._frozen: list[int] = []

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for agent in self._agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in self._agents:
            try:
                agent.wait(40)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        for pid in self._workers:  # torchrun's workers survive an agent that was killed
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for agent in self._agents:
            for pipe in (agent.stdin, agent.stdout):
                if pipe is not None:
                    pipe.close()
        for file in self._errors:
            file.close()
        os.close(self._reader)
        self._folder.cleanup()
        if self._server is not None:
            self._server.stop()

    def prepare_agent(self) -> None:
        """Start one more agent and wait until it is ready to join."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._errors.append(errors)
        # The first one hosts the store, so the others can be killed.
        is_host = "" if self._contender in surviving_contenders() else "false" if self._agents else "true"
        place = [self._nodes, self._endpoint, is_host]
        command = [sys.executable, "-m", "benchmarks._agent", self._contender.launcher, self._contender.backend, *place]
        agent = subprocess.Popen(
            [*command, sys.executable, MEMBER, self._pipe],
            cwd=HERE.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        self._agents.append(agent)
        assert agent.stdout is not None
        if agent.stdout.readline() != b"ready\n":
            raise BenchmarkError(f"{self._contender.name} did not get ready: {self.last_output()}")

    def launch(self, count: int) -> float:
        """Start ``count`` nodes by ``quorate run``, with nothing prepared; returns the monotonic second before it."""
        began = time.monotonic()
        for rank in range(count):
            conf = (
                [] if self._contender in surviving_contenders() else [f"--rdzv-conf=is_host={str(rank == 0).lower()}"]
            )
            command = [sys.executable, "-m", "quorate", "run", f"--nnodes={self._nodes}", f"--node-rank={rank}", *conf]
            command += [
                "--rdzv-id=bench",
                f"--rdzv-backend={self._contender.backend}",
                f"--rdzv-endpoint={self._endpoint}",
            ]
            errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
            self._errors.append(errors)
            self._agents.append(subprocess.Popen([*command, MEMBER, self._pipe], stdout=errors, stderr=errors))
        return began

    def freeze_agent(self, index: int) -> float:
        """Stop an agent and all that it has started, as a machine stops; returns the monotonic second before it."""
        began = time.monotonic()
        pending = [self._agents[index].pid]
        while pending:
            pid = pending.pop()
            os.kill(pid, signal.SIGSTOP)
            self._frozen.append(pid)
            pending += children_of(pid)
        return began

    def join(self) -> float:
        """Have the newest agent join; returns the monotonic second before it."""
        stdin = self._agents[-1].stdin
        assert stdin is not None
        began = time.monotonic()
        stdin.write(b"\n")
        stdin.flush()
        return began

    def start_agent(self) -> float:
        """Prepare one more agent and have it join; returns the monotonic second before it joins."""
        self.prepare_agent()
        return self.join()

    def signal_agent(self, index: int, number: int) -> float:
        """Signal an agent; returns the monotonic second before it."""
        began = time.monotonic()
        self._agents[index].send_signal(number)
        return began

    def wait_for(self, world: int, lines: int, seconds: float) -> float | None:
        """Return when the last of ``lines`` workers runs in a world of ``world``; ``None`` after ``seconds``."""
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

    def last_output(self) -> str:
        """Return the last output of the agents."""
        outputs = []
        for file in self._errors:
            file.seek(0)
            outputs.append(file.read()[-300:].decode(errors="replace").strip())
        return " | ".join(outputs) or "nothing"


@contextmanager
def running(contender: Contender, nodes: str, agents: int) -> Iterator[Job]:
    """Yield a job whose ``agents`` all run in one world."""
    with Job(contender, nodes) as job:
        for _ in range(agents):
            job.start_agent()
        if job.wait_for(agents, agents, START_SECONDS) is None:
            raise BenchmarkError(f"{contender.name}: {agents} agents did not form a round: {job.last_output()}")
        yield job


# --- measurements ---------------------------------------------------------------------------------------------------


def last_join(contender: Contender, agents: int) -> float | None:
    """Return the seconds from the moment the last agent is to join until all workers run."""
    if contender is BARE:
        return interpreters_alone(agents)
    with Job(contender, str(agents)) as job:
        for _ in range(agents - 1):
            job.start_agent()
        job.prepare_agent()
        time.sleep(1.0)  # until the others wait
        last = job.join()
        whole = job.wait_for(agents, agents, START_SECONDS)
    if whole is None:
        raise BenchmarkError(f"{contender.name} did not start {agents} agents: {job.last_output()}")
    return whole - last


def interpreters_alone(count: int) -> float:
    """Return the seconds until ``count`` workers that are started at once all run: the lower bound."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "lines")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDWR)
        place = {"GROUP_RANK": "0", "RANK": "0", "GROUP_WORLD_SIZE": str(count), "WORLD_SIZE": str(count)}
        command, environment = [sys.executable, MEMBER, path], {**os.environ, **place}
        began = time.monotonic()
        pids = [os.posix_spawn(command[0], command, environment) for _ in range(count)]
        try:
            lines = b""
            while lines.count(b"\n") < count:
                if not select.select([reader], [], [], START_SECONDS)[0]:
                    raise BenchmarkError(f"{count} workers did not start within {START_SECONDS:g} s")
                lines += os.read(reader, 4096)
            return max(float(line.split()[0]) for line in lines.splitlines()) - began
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(reader)


def departure(contender: Contender, number: int, seconds: float) -> float | None:
    """Return the seconds from the signal to an agent (not the store's host) until the survivor's worker runs alone."""
    with running(contender, "1:2", 2) as job:
        time.sleep(2.0)  # a guardian gets ready once workers have started
        began = job.signal_agent(1, number)
        at = job.wait_for(1, 1, seconds)
        return None if at is None else at - began


def vanishing(contender: Contender) -> float | None:
    """Return the seconds from the standstill of a node, without a word, until the survivors' workers run alone."""
    count = 3 if contender.backend == "etcd-hosted" else 2  # two of three members are left
    with running(contender, f"1:{count}", count) as job:
        time.sleep(2.0)
        began = job.freeze_agent(count - 1)
        at = job.wait_for(count - 1, count - 1, START_SECONDS)
        return None if at is None else at - began


def first_round(contender: Contender) -> float | None:
    """Return the seconds from the start of three nodes, with nothing prepared, until the first worker runs."""
    with Job(contender, "3") as job:
        began = job.launch(3)
        at = job.wait_for(3, 1, START_SECONDS)
        return None if at is None else at - began


def arrival(contender: Contender, seconds: float) -> float | None:
    """Return the seconds from the moment a second agent is to join a running job until both run together."""
    with running(contender, "1:2", 1) as job:
        last = job.start_agent()
        whole = job.wait_for(2, 2, seconds)
        return None if whole is None else whole - last


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks elastic", description="Nodes join, leave and are lost.")
    parser.add_argument("--quick", action="store_true", help="ours alone where torchrun takes minutes, fewer runs")
    parser.add_argument("--repeats", type=int, help="runs of each contender per measurement")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    repeats, timeout = options.repeats or (1 if options.quick else 5), 5.0 if options.quick else 60.0
    compile_sources()
    report = Report("elastic", repeats)
    compared = contenders()
    try:
        for agents in (2,) if options.quick else (2, 4, 8):
            title = f"last of {agents} nodes joined to all workers running, s"
            samples = collect([*compared, BARE], repeats, partial(last_join, agents=agents))
            report.add(title, samples, [bound("at most 60 ms", samples, 0.060)])
        if options.quick:
            compared = [contender for contender in compared if contender.launcher == "quorate"]
        all_ours = [*compared, *surviving_contenders()]
        killed = collect(all_ours, repeats, lambda it: departure(it, signal.SIGKILL, timeout), timeout)
        over_torch = {name: killed[name] for name in killed if name == "quorate"}
        others = {name: killed[name] for name in killed if name not in ("quorate", "torchrun")}
        bounds = [bound("at most 1 s over c10d", over_torch, 1.0)]
        bounds += [bound(f"at most 0.3 s, {name}", {OURS: others[name]}, 0.3) for name in others]
        report.add("agent killed to survivor in its new world, s", killed, bounds)
        ours = [contender for contender in all_ours if contender.launcher == "quorate"]
        vanished = collect(ours, repeats, vanishing)
        report.add(
            "machine vanished to survivors in their new world, s",
            vanished,
            [bound(f"lease of 3 s and 0.3 s, {name}", {OURS: vanished[name]}, 3.3) for name in vanished],
        )
        cold = collect([each for each in ours if each.backend != "c10d"], repeats, first_round)
        report.add(
            "three nodes started to the first worker's line, s",
            cold,
            [bound("at most 1.5 s, etcd-hosted", {OURS: cold["quorate, etcd-hosted"]}, 1.5)],
        )
        stopped = collect(all_ours, repeats, lambda it: departure(it, signal.SIGTERM, timeout), timeout)
        report.add(
            "agent stopped by SIGTERM to survivor in its new world, s", stopped, [bound("at most 0.3 s", stopped, 0.3)]
        )
        joined = collect(compared, repeats, lambda it: arrival(it, timeout), timeout)
        report.add("node joins a running 1:2 job to both in the bigger world, s", joined, [bound("0.3 s", joined, 0.3)])
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def collect(
    compared: Sequence[Contender],
    repeats: int,
    measure: Callable[[Contender], float | None],
    timeout: float = START_SECONDS,
) -> Samples:
    """Measure in turns; a contender that was too late is not measured again, and counts with ``timeout``."""
    samples: Samples = {}
    late: set[str] = set()
    for contender in in_turns(compared, repeats):
        if contender.name in late:
            continue
        seconds = measure(contender)
        if seconds is None:
            late.add(contender.name)
        samples.setdefault(contender.name, []).append(timeout if seconds is None else seconds)
    for name in late:
        ours = f" (median of ours: {statistics.median(samples[OURS]):g} s)" if OURS in samples else ""
        print(f"{name} had not done it after {timeout:g} s{ours}")
    return samples


if __name__ == "__main__":
    sys.exit(main())
