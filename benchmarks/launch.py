"""``python -m benchmarks launch``: what launching, restarting and idling cost, side by side with mpirun and torchrun.

The launchers take turns in changing orders, so that other load on the machine affects all of them.  Workers print one
line and import nothing.  Every claim is a ratio or a bound that is printed beside its measurement.  What does not live
here: how launchers are started and read (``_processes.py``).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from ._processes import (
    SETTLE_SECONDS,
    BenchmarkError,
    Launcher,
    Peer,
    find_peers,
    interpreter_alone,
    resident_mb,
    usage_of,
)
from ._report import OURS, Report, Samples, at_most, bound, compile_sources, faster, in_turns


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks launch", description="Compare launchers.")
    parser.add_argument("--quick", action="store_true", help="fewer runs and shorter windows, for a first look")
    parser.add_argument("--repeats", type=int, help="runs of each launcher per measurement")
    parser.add_argument("--idle-seconds", type=float, help="how long the idle agent is watched")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    repeats = options.repeats or (3 if options.quick else 15)
    idle_seconds = options.idle_seconds or (5.0 if options.quick else 30.0)
    try:
        report = measure(repeats, idle_seconds, (2,) if options.quick else (1, 2, 8))
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def measure(repeats: int, idle_seconds: float, worker_counts: Sequence[int]) -> Report:
    """Run and print all measurements."""
    compile_sources()
    peers, missing = find_peers()
    for name in missing:
        print(f"{name} is not installed and is left out")
    report = Report("launch", repeats)
    for workers in worker_counts:
        first, whole = launches(peers, workers, repeats)
        targets = [*at_most("mpirun", first, 2.0), *faster("torchrun", first, 12.0)]
        report.add(f"launch to first worker's line, {workers} worker(s), ms", first, targets)
        report.add(f"launch to exit, {workers} worker(s), ms", whole, at_most("mpirun", whole, 2.0))
    restarting = [peer for peer in peers if peer.name != "mpirun"]
    for workers, limit in ((2, 40.0),) if max(worker_counts) < 8 else ((2, 40.0), (8, 90.0)):
        killed = restarts([*restarting], workers, max(2, repeats // 3))
        title = f"worker killed to its successor's first line, {workers} workers, ms"
        report.add(title, killed, [bound(f"at most {limit:g} ms", killed, limit)])
    imported = imports(repeats)
    report.add("import quorate, beyond a bare interpreter, ms", imported, [bound("at most 60 ms", imported, 60.0)])
    memory, cpu, wakes = idles(peers, 8, idle_seconds)
    report.add("agent's memory with 8 workers, MB", memory, [bound("at most 35 MB", memory, 35.0)])
    limit = idle_seconds / 6
    report.add(f"agent's CPU in {idle_seconds:g} idle s, ms", cpu, [bound("at most 5 ms in 30 s", cpu, limit)])
    report.add(f"agent's wake-ups in {idle_seconds:g} idle s", wakes)
    return report


# --- measurements ---------------------------------------------------------------------------------------------------


def launches(peers: Sequence[Peer], workers: int, repeats: int) -> tuple[Samples, Samples]:
    """Return the times from the launcher's start to the first line of a worker, and to its own end."""
    first: Samples = {}
    whole: Samples = {}
    # These two differ by less than the noise of the others, so they need more samples.
    close = [peer for peer in peers if peer.name in (OURS, "mpirun")]
    for peer in in_turns([*peers, *close, *close], repeats):
        with Launcher(peer, workers) as launcher:
            launcher.next_pid()
            first.setdefault(peer.name, []).append((time.monotonic() - launcher.began) * 1000)
            whole.setdefault(peer.name, []).append((launcher.wait() - launcher.began) * 1000)
    return first, whole


def restarts(peers: Sequence[Peer], workers: int, repeats: int) -> Samples:
    """Return the times from the SIGKILL of one worker to its successor's first line.

    ``python`` is the start of a bare interpreter.
    """
    samples: Samples = {}
    bare = interpreter_alone()
    for peer in in_turns([*peers, bare], repeats):
        with Launcher(peer, 1 if peer is bare else workers, [] if peer is bare else ["stay"]) as launcher:
            began = launcher.began
            if peer is not bare:
                pids = [launcher.next_pid() for _ in range(workers)]
                time.sleep(SETTLE_SECONDS)
                began = time.monotonic()
                os.kill(pids[-1], signal.SIGKILL)
            launcher.next_pid()
            samples.setdefault(peer.name, []).append((time.monotonic() - began) * 1000)
    return samples


def imports(repeats: int) -> Samples:
    """Return how much longer an interpreter takes with the import than without; the same for torch's launcher.

    A worker that uses ``record`` pays for ``import quorate``; a program that launches jobs imports the other names.
    """
    modules = {
        "quorate": "from quorate import record",
        "quorate, to launch": "from quorate import LaunchConfig, LocalElasticAgent, WorkerSpec, launch",
        "torch.distributed.run": "import torch.distributed.run",
    }
    if importlib.util.find_spec("torch") is None:
        del modules["torch.distributed.run"]
    samples: Samples = {}
    for name, statement in in_turns(modules.items(), repeats):
        bare = _seconds_of("pass")
        samples.setdefault(name, []).append((_seconds_of(statement) - bare) * 1000)
    return samples


def _seconds_of(code: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.monotonic() - began


def idles(peers: Sequence[Peer], workers: int, seconds: float) -> tuple[Samples, Samples, Samples]:
    """Return resident memory, CPU time and wake-ups of each launcher's own process while its workers do nothing.

    All are measured at the same time, because an idle process does not disturb the others.
    """
    launchers: list[Launcher] = []
    try:
        for peer in peers:
            launchers.append(Launcher(peer, workers, ["stay"]))
        for launcher in launchers:
            for _ in range(workers):
                launcher.next_pid()
        time.sleep(SETTLE_SECONDS)
        before = [usage_of(launcher.pid) for launcher in launchers]
        time.sleep(seconds)
        after = [usage_of(launcher.pid) for launcher in launchers]
        names = [launcher.peer.name for launcher in launchers]
        memory = {name: [resident_mb(launcher.pid)] for name, launcher in zip(names, launchers, strict=True)}
        pairs = list(zip(names, before, after, strict=True))
        cpu = {name: [late.cpu_ms - early.cpu_ms] for name, early, late in pairs}
        wakes = {name: [float(late.wake_ups - early.wake_ups)] for name, early, late in pairs}
        return memory, cpu, wakes
    finally:
        for launcher in launchers:
            launcher.__exit__(None, None, None)


if __name__ == "__main__":
    sys.exit(main())
