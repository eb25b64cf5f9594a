"""``python -m benchmarks warm``: time until all workers have imported torch, at the start and after one was killed.

quorate with its warm starter (``quorate``), quorate with a new interpreter for every worker (``quorate exec``), and
torchrun take turns in changing orders.  Each worker prints one line once torch can be used.  What does not live here:
how launchers are started and read (``_processes.py``).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ._processes import SETTLE_SECONDS, BenchmarkError, Launcher, Peer, elastic, program
from ._report import OURS, Report, Samples, at_most, bound, compile_sources, in_turns

WORKER = str(Path(__file__).with_name("_torch_worker.py"))
#: Milliseconds from a worker's death until torch is imported in all successors; by number of workers.
RESTART_LIMITS_MS = {2: 100.0, 8: 200.0}
COLD_RATIO = 0.4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks warm", description="Compare starts that import torch.")
    parser.add_argument("--quick", action="store_true", help="2 workers only, and fewer runs, for a first look")
    parser.add_argument("--repeats", type=int, help="runs of each launcher per measurement")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    repeats = options.repeats or (2 if options.quick else 5)
    try:
        report = measure(repeats, (2,) if options.quick else (2, 8))
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def measure(repeats: int, worker_counts: Sequence[int]) -> Report:
    """Run and print all measurements."""
    compile_sources()
    peers, missing = find_contenders()
    for name in missing:
        print(f"{name} is not installed and is left out")
    report = Report("warm", repeats)
    for workers in worker_counts:
        cold: Samples = {}
        again: Samples = {}
        for peer in in_turns(peers, repeats):
            started, restarted = run(peer, workers)
            cold.setdefault(peer.name, []).append(started)
            again.setdefault(peer.name, []).append(restarted)
        targets = at_most("torchrun", cold, COLD_RATIO) if workers == 8 else []
        report.add(f"launch until all of {workers} workers have imported torch, ms", cold, targets)
        limit = RESTART_LIMITS_MS[workers]
        targets = [bound(f"at most {limit:g} ms", again, limit)]
        report.add(f"worker killed until all of {workers} successors have imported torch, ms", again, targets)
    return report


def find_contenders() -> tuple[list[Peer], list[str]]:
    """Return the contenders, ours first, and the names of those that are not installed."""
    quorate, torchrun = program("quorate"), program("torchrun")
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")
    peers = [
        elastic(OURS, [quorate, "run", "--start-method=warm", "--preload=torch"], WORKER),
        elastic(f"{OURS} exec", [quorate, "run"], WORKER),
    ]
    if torchrun is None:
        return peers, ["torchrun"]
    return [*peers, elastic("torchrun", [torchrun], WORKER)], []


def run(peer: Peer, workers: int) -> tuple[float, float]:
    """Return the milliseconds of a start, and of a restart after the last worker was killed, until all have torch."""
    with Launcher(peer, workers, ["stay"]) as launcher:
        pids = [launcher.next_pid() for _ in range(workers)]
        started = time.monotonic() - launcher.began
        time.sleep(SETTLE_SECONDS)
        killed = time.monotonic()
        os.kill(pids[-1], signal.SIGKILL)
        for _ in range(workers):
            launcher.next_pid()
        return started * 1000, (time.monotonic() - killed) * 1000


if __name__ == "__main__":
    sys.exit(main())
