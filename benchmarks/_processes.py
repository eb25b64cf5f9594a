"""Starts the launchers that are compared, and reads what the kernel has counted of them.

What does not live here: which measurements are made (``launch.py``), and how they are printed (``_report.py``).
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import IO, final

from quorate.proc import resident_bytes, stat_of
from quorate.testing import free_port

WORKER = str(Path(__file__).with_name("_worker.py"))
DEADLINE_SECONDS = 120.0
#: After the start of its workers a launcher is not idle yet.
SETTLE_SECONDS = 1.0


class BenchmarkError(Exception):
    """A launcher did not do what it was started for."""


@final
@dataclass(frozen=True)
class Peer:
    """A launcher: its name, and its command line for a number of workers and their arguments."""

    name: str
    command: Callable[[int, Sequence[str]], list[str]]


def find_peers() -> tuple[list[Peer], list[str]]:
    """Return the launchers that are installed, ours first, and the names of those that are not."""
    quorate = program("quorate")
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")
    peers = [elastic("quorate", [quorate, "run"])]
    missing: list[str] = []
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        missing.append("mpirun")
    else:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        mpi = [mpirun, *root, "--oversubscribe"]
        peers.append(Peer("mpirun", lambda n, args: [*mpi, "-n", str(n), sys.executable, "-u", WORKER, *args]))
    for name in ("torchrun", "ft_launcher"):
        launcher = program(name)
        if launcher is None:
            missing.append(name)
        else:
            peers.append(elastic(name, [launcher]))
    return peers, missing


def elastic(name: str, command: Sequence[str], worker: str = WORKER) -> Peer:
    """Return a launcher that takes torchrun's flags."""
    run = [*command, "--standalone", "--max-restarts=1"]
    return Peer(name, lambda n, args: [*run, f"--nproc-per-node={n}", worker, *args])


def interpreter_alone() -> Peer:
    """Return a bare Python with the same worker: the lower bound of every launcher."""
    return Peer("python", lambda n, args: [sys.executable, "-u", WORKER, *args])


def program(name: str) -> str | None:
    """Return the program of that name beside this interpreter, else on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def free_port_pair(hosts: Sequence[str]) -> int:
    """Return a port that is free at all ``hosts`` right now, with the one behind it."""
    for _ in range(100):
        port = free_port()
        with ExitStack() as stack, suppress(OSError):
            for host, number in product(hosts, (port, port + 1)):
                stack.enter_context(socket.socket()).bind((host, number))
            return port
    raise BenchmarkError("no two free ports in a row")


@final
class Launcher:
    """One run of a launcher; ends, with its workers, at the end of the ``with`` block."""

    def __init__(self, peer: Peer, workers: int, arguments: Sequence[str] = ()) -> None:
        self.peer = peer
        self._buffer = b""
        self._worker_pids: list[int] = []
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            peer.command(workers, arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._exit = os.pidfd_open(self._process.pid)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in self._worker_pids:  # some launchers leave their workers running
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._exit)
        self._pipe.close()
        self._errors.close()

    def next_pid(self) -> int:
        """Return the process id in the next worker's line.

        Raises:
            BenchmarkError: the launcher ended, or nothing came before the deadline.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._pipe.fileno(), 4096) if ready else b""
            if not data:
                raise BenchmarkError(f"{self.peer.name} started no worker: {self._last_output()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._worker_pids.append(int(line))
        return self._worker_pids[-1]

    def wait(self) -> float:
        """Return the monotonic second at which the launcher has ended, which it must do with success."""
        # Not by Popen.wait with a timeout, which looks every 50 ms.
        ready, _, _ = select.select([self._exit], [], [], DEADLINE_SECONDS)
        ended = time.monotonic()
        if not ready:
            raise BenchmarkError(f"{self.peer.name} did not end: {self._last_output()}")
        code = self._process.wait()
        if code != 0:
            raise BenchmarkError(f"{self.peer.name} ended with exit code {code}: {self._last_output()}")
        return ended

    def _last_output(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-500:].decode(errors="replace").strip() or "it printed nothing"


@final
@dataclass(frozen=True)
class Usage:
    """What a process has used so far: CPU milliseconds, and how often it woke up, over all of its threads."""

    cpu_ms: float
    wake_ups: int


def usage_of(pid: int) -> Usage:
    """Read what the kernel has counted; CPU time in nanoseconds where it counts them, else in clock ticks."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    wake_ups = sum(_voluntary_switches(task) for task in tasks)
    try:
        return Usage(sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6, wake_ups)
    except OSError:
        stat = stat_of(pid)
        return Usage(0.0 if stat is None else stat.cpu_seconds * 1000, wake_ups)


def resident_mb(pid: int) -> float:
    """Return the resident memory of the process in MB (10^6 bytes)."""
    return (resident_bytes(pid) or 0) / 1e6


def _voluntary_switches(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
