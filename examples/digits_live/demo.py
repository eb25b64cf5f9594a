"""The demonstration of live workers: kills a worker, has an agent join, kills that agent, and checks who lived on.

Run it with ``make demo-live``.  It exits with 0 only if everything that it prints was checked.  What does not live
here: the training (``train.py``).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from quorate.testing import free_port

STEPS = 600
TIMEOUT_SECONDS = 120.0  # for each wait; long, because machines can be slow
PRELOAD = "quorate_live.preload,sklearn.datasets"

Line = Mapping[str, Any]


@final
class Stage:
    """The agents, and what their workers have reported through a named pipe."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pipe = folder, folder / "progress.fifo"
        #: Keeps the training from its end until the last scene is over, however slow the machine is.
        self.hold = folder / "hold"
        self.hold.touch()
        os.mkfifo(self.pipe)
        self._descriptor = os.open(self.pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self.lines: list[Line] = []
        self.agents: list[subprocess.Popen[bytes]] = []
        self._port = free_port()

    def start_agent(self, workers: int) -> subprocess.Popen[bytes]:
        """Start an agent in place of one machine."""
        command = [
            *(sys.executable, "-m", "quorate", "run", "--nnodes=1:2", f"--nproc-per-node={workers}"),
            *("--max-restarts=3", "--start-method=warm", f"--preload={PRELOAD}"),
            *("--rdzv-backend=tcp", f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=digits"),
            "--rdzv-conf=last_call_timeout=0.5,lease_timeout=1",
            *(str(Path(__file__).with_name("train.py")), f"--steps={STEPS}", "--step-seconds=0.02"),
            f"--hold={self.hold}",
        ]
        with (self.folder / f"agent-{len(self.agents)}.log").open("wb") as log:
            agent = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PROGRESS": str(self.pipe)}
            )
        self.agents.append(agent)
        return agent

    def read(self, seconds: float) -> None:
        """Take in what workers report within ``seconds``."""
        if select.select([self._descriptor], [], [], seconds)[0]:
            *whole, self._rest = (self._rest + os.read(self._descriptor, 1 << 16)).split(b"\n")
            self.lines += [json.loads(line) for line in whole]

    def wait(self, what: str, is_done: Callable[[], bool]) -> None:
        """Wait until ``is_done``; exit with the agents' logs if that takes too long."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not is_done():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
                sys.exit(f"{what}: not within {TIMEOUT_SECONDS:g} s\n{logs}")
            self.read(0.1)

    def pids(self, generation: int) -> dict[int, int]:
        """Return rank -> pid of the workers that have trained in a generation."""
        return {
            line["RANK"]: line["pid"]
            for line in self.lines
            if line["kind"] == "step" and line["QUORATE_GENERATION"] == generation
        }

    def next_world(self, size: int, above: int) -> tuple[int, float]:
        """Wait for a step of all ``size`` workers of a later generation; return it, and when the last was done."""
        self.wait(f"a world of {size} workers", lambda: any(len(self.pids(n)) == size for n in self._newer(above)))
        generation = next(number for number in self._newer(above) if len(self.pids(number)) == size)
        first: dict[int, float] = {}
        for line in self.lines:
            if line["kind"] == "step" and line["QUORATE_GENERATION"] == generation:
                first.setdefault(line["RANK"], line["at"])
        return generation, max(first.values())

    def _newer(self, above: int) -> list[int]:
        return sorted({line["QUORATE_GENERATION"] for line in self.lines if line["QUORATE_GENERATION"] > above})

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
                agent.wait()
        os.close(self._descriptor)


def expect(is_true: bool, sentence: str) -> None:
    if not is_true:
        sys.exit(f"not as promised: {sentence}")


def perform(stage: Stage) -> None:
    """Run all scenes."""
    first = stage.start_agent(3)
    generation, _ = stage.next_world(3, above=0)
    before = stage.pids(generation)
    print(f"three workers train: {before}", flush=True)

    killed_at = time.monotonic()
    os.kill(before[1], signal.SIGKILL)
    generation, again_at = stage.next_world(3, above=generation)
    after = stage.pids(generation)
    lived = set(before.values()) & set(after.values())
    print(f"rank 1 killed; the next step of all {again_at - killed_at:.2f} s later: {after}", flush=True)
    expect(lived == set(before.values()) - {before[1]}, "the two others live on")

    before = after
    second = stage.start_agent(1)
    generation, _ = stage.next_world(4, above=generation)
    grown = stage.pids(generation)
    print(f"an agent has joined: {grown}", flush=True)
    expect(set(before.values()) < set(grown.values()), "all three live on in a world of four")

    killed_at = time.monotonic()
    second.kill()
    generation, again_at = stage.next_world(3, above=generation)
    shrunk = stage.pids(generation)
    print(f"that agent killed; the next step of all {again_at - killed_at:.2f} s later: {shrunk}", flush=True)
    expect(set(shrunk.values()) == set(before.values()), "the three live on")

    stage.hold.unlink()
    stage.wait("the end of the training", lambda: first.poll() is not None)
    while select.select([stage._descriptor], [], [], 0.0)[0]:
        stage.read(0.0)
    expect(first.returncode == 0, "the agent ends with 0")
    check(stage)


def check(stage: Stage) -> None:
    """Check that every step was trained once, and that all ranks have the same parameters."""
    steps = [line for line in stage.lines if line["kind"] == "step"]
    expect({line["step"] for line in steps} == set(range(1, STEPS + 1)), "no step is left out")
    for pid in {line["pid"] for line in steps}:
        own = [line["step"] for line in steps if line["pid"] == pid]
        expect(own == sorted(set(own)), f"worker {pid} trained no step twice")
    losses: dict[int, set[float]] = {}
    for line in steps:
        losses.setdefault(line["step"], set()).add(round(line["loss"], 5))
    expect(all(len(values) == 1 for values in losses.values()), "a step has one loss, on all workers")
    ends = [line for line in stage.lines if line["kind"] == "end"]
    expect(len({tuple(line["digest"]) for line in ends}) == 1, "the parameters are equal on all ranks")
    expect(ends[0]["accuracy"] > 0.9, f"the accuracy is {ends[0]['accuracy']:.2%}")
    print(f"{STEPS} steps, each trained once; accuracy {ends[0]['accuracy']:.2%}; no checkpoint was read", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        try:
            perform(stage)
        finally:
            stage.close()


if __name__ == "__main__":
    main()
