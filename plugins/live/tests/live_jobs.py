"""Jobs of live workers: the command that runs one, and what its workers have reported so far."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import Any

QUORATE = str(Path(sys.executable).with_name("quorate"))
PROGRAM = str(Path(__file__).with_name("live_training.py"))
DEADLINE_SECONDS = 120.0
#: What workers import when they are started warm.
PRELOAD = "quorate_live.preload"

Line = Mapping[str, Any]


class Job:
    """One job, of one or several agents on this machine.  Use as a context manager."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self._environment = folder, environment
        self.agents: list[subprocess.Popen[str]] = []
        self.lines: list[Line] = []
        self.pipe = folder / "ear"
        os.mkfifo(self.pipe)
        self._descriptor = os.open(self.pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
        for agent in self.agents:
            try:
                agent.wait(30)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        os.close(self._descriptor)

    def start(self, program: str, workers: int, *flags: str, **environment: str) -> subprocess.Popen[str]:
        """Start an agent; its output goes into a file, behind that of an agent whose place it takes."""
        number = len(self.agents)
        output = open(self.folder / f"agent{number}.txt", "a")  # noqa: SIM115 - closed just below
        rendezvous = () if any(flag.startswith("--rdzv") for flag in flags) else ("--standalone",)
        command = [
            *(QUORATE, "run", *rendezvous, f"--nproc-per-node={workers}", "--max-restarts=10000"),
            *("--start-method=warm", f"--preload={PRELOAD}", *flags, PROGRAM, program),
        ]
        with output:
            agent = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "EAR": str(self.pipe), "OMP_NUM_THREADS": "1", **self._environment, **environment},
            )
        self.agents.append(agent)
        return agent

    # --- what the workers report ------------------------------------------------------------------------------------

    def read(self, timeout: float) -> bool:
        """Take in what has come; wait for it for ``timeout`` seconds at most; return whether anything has."""
        if not select.select([self._descriptor], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:  # select may call it ready although nothing is there
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines += [json.loads(line) for line in whole]
        return bool(whole)

    def wait(self, what: Callable[[], Any], why: str, meanwhile: Future[Any] | None = None) -> None:
        """Wait until ``what()`` is true, while the agents run, or a call ``meanwhile``."""
        end = monotonic() + DEADLINE_SECONDS
        while not what():
            if monotonic() > end or (not self.read(0.25) and self._is_over(meanwhile)):
                raise AssertionError(f"{why}\n{self.lines[-20:]}\n{self.output()}")

    def _is_over(self, meanwhile: Future[Any] | None) -> bool:
        if meanwhile is not None:
            return meanwhile.done()
        return all(agent.poll() is not None for agent in self.agents)

    def output(self) -> str:
        """Return what the agents and their workers have written."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("agent*.txt")))

    def of(self, kind: str, generation: int | None = None) -> list[Line]:
        """Return the reports of a kind, of one generation or of all."""
        return [
            line for line in self.lines if line["kind"] == kind and generation in (None, line["QUORATE_GENERATION"])
        ]

    @property
    def generation(self) -> int:
        """The newest generation in which a worker has trained."""
        return max((line["QUORATE_GENERATION"] for line in self.of("step")), default=0)

    def pids(self, generation: int) -> dict[int, int]:
        """Return rank -> pid of the workers that have trained in a generation."""
        return {line["RANK"]: line["pid"] for line in self.of("step", generation)}

    def wait_for_world(self, size: int, above: int = 0, steps: int = 1, meanwhile: Future[Any] | None = None) -> int:
        """Wait until all workers of a world of ``size`` have trained ``steps`` steps; return its generation."""

        def is_there() -> bool:
            number = self.generation
            own = [line["RANK"] for line in self.of("step", number) if line["WORLD_SIZE"] == size]
            return number > above and all(own.count(rank) >= steps for rank in range(size))

        self.wait(is_there, f"no world of {size} workers after generation {above}", meanwhile)
        return self.generation

    def finish(self) -> Sequence[int]:
        """Wait until the job ends; return the agents' exit codes."""
        codes = []
        for agent in self.agents:
            end = monotonic() + DEADLINE_SECONDS
            while agent.poll() is None:
                assert monotonic() < end, f"the job does not end\n{self.lines[-20:]}\n{self.output()}"
                self.read(0.1)
            codes.append(agent.returncode)
        while self.read(0.0):
            pass
        return codes


def steps_of(job: Job) -> dict[int, list[int]]:
    """Return pid -> the steps that it has trained, in its order."""
    result: dict[int, list[int]] = {}
    for line in job.of("step"):
        result.setdefault(line["pid"], []).append(line["step"])
    return result
