"""``python -m benchmarks launch``: what launching, restarting and idling cost, side by side with mpirun and torchrun.

The launchers take turns (A B C A B C …), so that whatever else the machine does meets all of them; workers print one
line and import nothing.  Every claim is a ratio or a bound that is printed beside its measurement.  What does not live
here: how launchers are started and read (``_processes.py``).
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quorate._discovery import find_plugins

from ._processes import BenchmarkError, Launcher, Peer, find_peers, interpreter_alone, resident_mb, usage_of

RESULTS = Path(__file__).with_name("results")
Samples = dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks launch", description="Compare launchers.")
    parser.add_argument("--quick", action="store_true", help="fewer runs and shorter windows, for a first look")
    parser.add_argument("--repeats", type=int, help="runs of each launcher per measurement")
    parser.add_argument("--idle-seconds", type=float, help="how long the idle agent is watched")
    options = parser.parse_args(argv)
    repeats = options.repeats or (3 if options.quick else 15)
    idle_seconds = options.idle_seconds or (5.0 if options.quick else 30.0)
    try:
        results = measure(repeats, idle_seconds, (2,) if options.quick else (1, 2, 8))
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("launch-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({"machine": machine(), "samples": results}, indent=1))
    print(f"\nall samples: {path}")
    return 0


def measure(repeats: int, idle_seconds: float, worker_counts: Sequence[int]) -> dict[str, Samples]:
    """Run everything and print as it goes; returns title -> launcher -> samples."""
    compile_sources()
    peers, missing = find_peers()
    for name in missing:
        print(f"{name} is not installed and left out")
    print(f"{', '.join(f'{name} {value}' for name, value in machine().items())}; {repeats} runs each, interleaved")
    results: dict[str, Samples] = {}
    for workers in worker_counts:
        first, whole = launches(peers, workers, repeats)
        title = f"launch to first worker's line, {workers} worker(s), ms"
        results[title] = first
        show(title, first, launch_targets(first))
        title = f"launch to exit, {workers} worker(s), ms"
        results[title] = whole
        show(title, whole, [])
    restarting = [peer for peer in peers if peer.name != "mpirun"]
    samples = restarts(restarting, 2, max(3, repeats // 3))
    results["worker killed to successor's first line, less a bare interpreter's start, ms"] = samples
    show(
        "worker killed to successor's first line, less a bare interpreter's start, ms",
        samples,
        restart_targets(samples),
    )
    memory, cpu, wakes = idles(peers, 8, idle_seconds)
    for title, samples, targets in (
        ("agent's memory with 8 workers, MB", memory, [bound("at most 35 MB", memory, 35.0)]),
        (f"agent's CPU in {idle_seconds:g} idle s, ms", cpu, [bound("at most 5 ms in 30 s", cpu, idle_seconds / 6)]),
        (f"agent's wake-ups in {idle_seconds:g} idle s", wakes, []),
    ):
        results[title] = samples
        show(title, samples, targets)
    return results


# --- measurements ---------------------------------------------------------------------------------------------------


def compile_sources() -> None:
    """Write quorate's bytecode, as an installer does: a checkout that may not write any would compile at each start."""
    for name in {found.distribution.replace("-", "_") for found in find_plugins()} | {"quorate"}:
        found = importlib.util.find_spec(name)
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            compileall.compile_dir(folder, quiet=1)


def launches(peers: Sequence[Peer], workers: int, repeats: int) -> tuple[Samples, Samples]:
    """Time from the launcher's start to the first line of a worker, and to its own end."""
    first: Samples = {}
    whole: Samples = {}
    for _ in range(repeats):
        for peer in peers:
            with Launcher(peer, workers) as launcher:
                launcher.next_pid()
                first.setdefault(peer.name, []).append((time.monotonic() - launcher.began) * 1000)
                whole.setdefault(peer.name, []).append((launcher.wait() - launcher.began) * 1000)
    return first, whole


def restarts(peers: Sequence[Peer], workers: int, repeats: int) -> Samples:
    """Time from the SIGKILL of one worker to its successor's first line, less what a bare interpreter takes for its."""
    alone: list[float] = []
    for _ in range(repeats):
        with Launcher(interpreter_alone(), 1) as bare:
            bare.next_pid()
            alone.append((time.monotonic() - bare.began) * 1000)
    start = statistics.median(alone)
    print(f"\na bare interpreter's start to its first line: {spread(alone)} ms")
    samples: Samples = {}
    for _ in range(repeats):
        for peer in peers:
            with Launcher(peer, workers, ["stay"]) as launcher:
                pids = [launcher.next_pid() for _ in range(workers)]
                killed = time.monotonic()
                os.kill(pids[-1], signal.SIGKILL)
                launcher.next_pid()
                samples.setdefault(peer.name, []).append((time.monotonic() - killed) * 1000 - start)
    return samples


def idles(peers: Sequence[Peer], workers: int, seconds: float) -> tuple[Samples, Samples, Samples]:
    """Resident memory, CPU time and wake-ups of each launcher's own process while its workers do nothing.

    Watched at the same time: an idle process does not disturb the next one.
    """
    launchers: list[Launcher] = []
    try:
        for peer in peers:
            launchers.append(Launcher(peer, workers, ["stay"]))
        for launcher in launchers:
            for _ in range(workers):
                launcher.next_pid()
        time.sleep(1.0)  # what a launcher does right after the start is not idling
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


# --- telling --------------------------------------------------------------------------------------------------------


def show(title: str, samples: Mapping[str, Sequence[float]], targets: Sequence[str]) -> None:
    print(f"\n{title}")
    ours = statistics.median(samples["quorate"])
    for name, values in samples.items():
        ratio = "" if name == "quorate" or ours <= 0 else f"   {statistics.median(values) / ours:.2f} x ours"
        print(f"  {name:<9} {spread(values)}{ratio}")
    for target in targets:
        print(f"  {target}")


def spread(values: Sequence[float]) -> str:
    """Return median, minimum and maximum."""
    if len(values) == 1:
        return f"{values[0]:8.1f}"
    return f"{statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f})"


def launch_targets(samples: Samples) -> list[str]:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ours = medians["quorate"]
    told: list[str] = []
    if "mpirun" in medians:
        told.append(verdict("at most 2 x mpirun", ours / medians["mpirun"], ours <= 2 * medians["mpirun"]))
    if "torchrun" in medians:
        told.append(verdict("10 x sooner than torchrun", medians["torchrun"] / ours, medians["torchrun"] >= 10 * ours))
    return told


def restart_targets(samples: Samples) -> list[str]:
    return [bound("at most 50 ms more than the interpreter's start", samples, 50.0)]


def bound(target: str, samples: Samples, limit: float) -> str:
    ours = statistics.median(samples["quorate"])
    return f"target {target}: {'met' if ours <= limit else 'MISSED'} ({ours:.1f})"


def verdict(target: str, ratio: float, met: bool) -> str:
    return f"target {target}: {'met' if met else 'MISSED'} ({ratio:.2f} x)"


def machine() -> dict[str, str]:
    """Return what a reader needs to compare with measurements of their own."""
    facts = {"python": platform.python_version(), "cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    for name in ("quorate-core", "torch"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    return facts


if __name__ == "__main__":
    sys.exit(main())
