"""``python -m benchmarks tee``: how fast the output of eight workers reaches files and the console, complete and whole.

Each launcher tees every worker's standard output to a file and to the console; all lines must be there at the end, none
lost, torn or mixed.  What does not live here: output that is not teed, which no launcher touches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ._processes import BenchmarkError, program
from ._report import Report, Samples, compile_sources, faster

CHATTER = str(Path(__file__).with_name("_chatter.py"))
WORKERS = 8


def commands() -> dict[str, list[str]]:
    """Return the launchers that can tee."""
    quorate, torchrun = program("quorate"), program("torchrun")
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")
    found = {"quorate": [quorate, "run", "--standalone"]}
    if torchrun is not None:
        found["torchrun"] = [torchrun, "--standalone"]
    return found


def lines_per_second(command: Sequence[str], count: int) -> tuple[float, str]:
    """Return the lines a second, from the first worker's begin until the last line is on the console.

    With it comes what is wrong with the lines, ``""`` if all are there, whole and in order.

    Raises:
        BenchmarkError: the launcher failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--nproc-per-node={WORKERS}", "--tee=1", f"--log-dir={folder}", CHATTER]
        arguments += [str(count), os.path.join(folder, "began")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert process.stdout is not None
        chunks: list[bytes] = []
        last = 0.0
        while chunk := os.read(process.stdout.fileno(), 1 << 20):
            last = time.monotonic()
            chunks.append(chunk)
        process.stdout.close()
        if process.wait() != 0:
            raise BenchmarkError(f"{command[0]} failed with exit code {process.returncode}")
        began = min(float(Path(folder, f"began.{rank}").read_text()) for rank in range(WORKERS))
    return WORKERS * count / (last - began), _problem_with(b"".join(chunks), count)


def _problem_with(output: bytes, count: int) -> str:
    seen: dict[int, int] = dict.fromkeys(range(WORKERS), 0)
    for line in output.splitlines():
        prefix, _, rest = line.partition(b"]:")
        fields = (rest if rest else prefix).split()
        if len(fields) != 3 or not fields[0].isdigit() or set(fields[2]) != {ord("x")}:
            continue  # a launcher's own words
        rank, number = int(fields[0]), int(fields[1])
        if number != seen[rank]:
            return f"line {seen[rank]} of rank {rank} is missing, torn or out of order; {number} came instead"
        seen[rank] += 1
    if set(seen.values()) != {count}:
        return f"lines are missing: {seen}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks tee", description="Output of eight workers.")
    parser.add_argument("--quick", action="store_true", help="fewer lines, fewer runs")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    count, repeats = (20_000, 2) if options.quick else (50_000, 5)
    compile_sources()
    report = Report("tee", repeats)
    samples: Samples = {}
    damaged: dict[str, int] = {}
    try:
        for _ in range(repeats):
            for name, command in commands().items():
                rate, problem = lines_per_second(command, count)
                samples.setdefault(name, []).append(1e6 / rate)
                damaged[name] = damaged.get(name, 0) + bool(problem)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    whole = [
        f"target {name} loses, tears and mixes nothing: {'met' if not runs else f'MISSED in {runs} of {repeats} runs'}"
        for name, runs in damaged.items()
    ]
    report.add("teed output of 8 workers, microseconds a line", samples, [*faster("torchrun", samples, 3.0), *whole])
    report.write(options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
