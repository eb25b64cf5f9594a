"""``python -m benchmarks live``: from the loss of a worker to the next training step of all, beside the peers.

Live workers with warm replacements (``quorate``), the same without live workers (``quorate warm``), torchrun by
``quorate exec`` and by itself, and torchft, take turns in changing orders.  Once a worker is killed and replaced; once
the agent of one worker is told to end, so that the world shrinks.  The model is tiny and no checkpoint is read:
what is measured is what launcher, torch and gloo take.  What does not live here: the training (``_live_worker.py``).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, final

from quorate.testing import free_port

from ._processes import BenchmarkError, program
from ._report import OURS, Report, Samples, bound, compile_sources, faster, in_turns

WORKER = str(Path(__file__).with_name("_live_worker.py"))
WORKERS = (2, 4, 8)
START_SECONDS, NEXT_STEP_SECONDS = 120.0, 60.0
#: Before a loss: agents and templates use the first idle second to prepare for one.
SETTLE_SECONDS = 2.0
#: Seconds until all have taken their next step, by number of workers; without and with a world that shrinks.
LIMITS = {2: 0.3, 4: 0.3}
SHRINKING_LIMIT = 0.2
TORCHRUN_RATIO = 15.0
TORCHFT = "torchft"
#: torchft's coordinator.  Its own defaults are 5 s for a lost heartbeat and a minute for workers that do not join.
LIGHTHOUSE = """
import signal, sys
from torchft.coordination import LighthouseServer
server = LighthouseServer(
    bind=sys.argv[1], min_replicas=1, join_timeout_ms=1000, quorum_tick_ms=50, heartbeat_timeout_ms=1000
)
signal.pause()
"""


@final
@dataclass(frozen=True)
class Contender:
    """A launcher, and how it starts and trains workers.

    Attributes:
        command: what torchrun's flags are appended to.
        mode: of the worker.
    """

    name: str
    command: Sequence[str]
    mode: str


@final
@dataclass(frozen=True)
class Step:
    """A worker's line: when it took a step (monotonic seconds), and in which world."""

    at: float
    pid: int
    number: int
    size: int
    rank: int

    @property
    def place(self) -> tuple[int, int]:
        """Another one in each world, if only the process is another one."""
        return self.pid, self.number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description="Time from a loss to the next step.")
    parser.add_argument("--quick", action="store_true", help="2 workers only, and one run each, for a first look")
    parser.add_argument("--repeats", type=int, help="runs of each contender per measurement")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers", default=None)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders, where not all are to be measured")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    try:
        repeats, counts = options.repeats or (1 if options.quick else 3), (2,) if options.quick else WORKERS
        report = measure(repeats, options.workers or counts, options.only)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def measure(repeats: int, worker_counts: Sequence[int], only: Sequence[str] | None = None) -> Report:
    """Run and print all measurements."""
    compile_sources()
    contenders, missing = find_contenders()
    for name in missing:
        print(f"{name} is not installed and is left out")
    contenders = [each for each in contenders if only is None or each.name in only]
    report = Report("live", repeats)
    for count in worker_counts:
        for is_shrinking in (False, True):
            samples: Samples = {}
            for contender in in_turns(contenders, repeats):
                seconds = shrink(contender, count) if is_shrinking else replace(contender, count)
                samples.setdefault(contender.name, []).append(seconds)
            how = (
                "one of {} workers leaves to the next step of all others, s"
                if is_shrinking
                else ("one of {} workers killed to the next step of all, its replacement included, s")
            )
            report.add(how.format(count), samples, _targets(samples, count, is_shrinking))
    return report


def _targets(samples: Samples, count: int, is_shrinking: bool) -> list[str]:
    limit = SHRINKING_LIMIT if is_shrinking else LIMITS.get(count)
    if limit is None or OURS not in samples:
        return []
    return [bound(f"at most {limit:g} s", samples, limit), *faster("torchrun", samples, TORCHRUN_RATIO)]


def find_contenders() -> tuple[list[Contender], list[str]]:
    """Return the contenders, ours first, and the names of those that are not installed."""
    quorate, torchrun = program("quorate"), program("torchrun")
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")
    warm = [quorate, "run", "--start-method=warm", "--preload=quorate_live.preload"]
    found = [Contender(OURS, warm, "live"), Contender("quorate warm", warm, "plain")]
    if torchrun is not None:
        # By name: a path would lead past the torchrun that "quorate exec" puts first.
        found.append(Contender("quorate exec", [quorate, "exec", "--", "torchrun"], "plain"))
        found.append(Contender("torchrun", [torchrun], "plain"))
        if find_spec(TORCHFT) is not None:
            found.append(Contender(TORCHFT, [torchrun], TORCHFT))
    names = {each.name for each in found}
    return found, [name for name in ("torchrun", TORCHFT) if name not in names]


@final
class Job:
    """One job; ends, with all its processes, at the end of the ``with`` block."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.agents: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._pipe = os.path.join(self._folder.name, "steps")
        os.mkfifo(self._pipe)
        self._reader = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)  # also for writing, so that it never ends
        self._rest = b""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._workers: set[int] = set()
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}
        if contender.mode == TORCHFT:
            bind = f"127.0.0.1:{free_port()}"
            self._environment["TORCHFT_LIGHTHOUSE"] = f"http://{bind}"
            self._start([sys.executable, "-c", LIGHTHOUSE, bind])

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in self.agents:
            try:
                agent.wait(40)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        for pid in self._workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._reader)
        self._errors.close()
        self._folder.cleanup()

    def start(self, workers: int, *rendezvous: str) -> None:
        """Start an agent; with torchft one for each worker."""
        is_apart = self.contender.mode == TORCHFT
        flags = ["--standalone"] if is_apart or not rendezvous else rendezvous
        for _ in range(workers if is_apart else 1):
            command = [*self.contender.command, *flags, "--max-restarts=5"]
            command.append(f"--nproc-per-node={1 if is_apart else workers}")
            command += [WORKER, self._pipe, self.contender.mode]
            self._start(command)

    def _start(self, command: Sequence[str]) -> None:
        environment, output = self._environment, self._errors
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.agents.append(process)

    def settle(self, count: int) -> dict[int, Step]:
        """Wait until ``count`` workers train together, and some time more; return their steps by rank."""
        found = self._next_steps(count, frozenset(), START_SECONDS)
        if found is None:
            raise BenchmarkError(f"{self.contender.name}: {count} workers do not train: {self._last_output()}")
        end = time.monotonic() + SETTLE_SECONDS
        latest: dict[int, Step] = found
        for step in self._steps(end):
            if step.size == count:
                latest[step.rank] = step
        return latest

    def seconds_to_next_step(self, lost: float, count: int, before: dict[int, Step]) -> float:
        """Return the seconds from ``lost`` until ``count`` workers have taken a step in another world than before."""
        old = frozenset(step.place for step in before.values())
        found = self._next_steps(count, old, NEXT_STEP_SECONDS)
        if found is None:
            print(f"{self.contender.name}: no step of {count} workers within {NEXT_STEP_SECONDS:g} s")
            return NEXT_STEP_SECONDS
        return max(step.at for step in found.values()) - lost

    def _next_steps(self, count: int, old: frozenset[tuple[int, int]], seconds: float) -> dict[int, Step] | None:
        found: dict[int, Step] = {}
        for step in self._steps(time.monotonic() + seconds):
            if step.size == count and step.place not in old:
                found.setdefault(step.rank, step)
            if len(found) == count:
                return found
        return None

    def _steps(self, deadline: float) -> Iterator[Step]:
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                at, *numbers = line.split()
                step = Step(float(at), *map(int, numbers))
                self._workers.add(step.pid)
                yield step
                if time.monotonic() >= deadline:
                    return
            if not select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return
            self._rest += os.read(self._reader, 1 << 16)

    def _last_output(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-500:].decode(errors="replace").strip() or "nothing"


def replace(contender: Contender, workers: int) -> float:
    """Return the seconds from a worker's SIGKILL until all, its replacement included, have taken a step."""
    with Job(contender) as job:
        job.start(workers)
        before = job.settle(workers)
        victim = before[max(before)].pid
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        return job.seconds_to_next_step(killed, workers, before)


def shrink(contender: Contender, workers: int) -> float:
    """Return the seconds from the SIGTERM to one worker's agent until all others have taken a step without it."""
    rendezvous = ["--nnodes=1:2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=live"]
    conf = "--rdzv-conf=last_call_timeout=1,is_host="  # torchrun's own timeout is 30 s, which it would wait
    with Job(contender) as job:
        job.start(workers - 1, *rendezvous, f"{conf}true")
        job.start(1, *rendezvous, f"{conf}false")
        before = job.settle(workers)
        told = time.monotonic()
        job.agents[-1].terminate()
        return job.seconds_to_next_step(told, workers - 1, before)


if __name__ == "__main__":
    sys.exit(main())
