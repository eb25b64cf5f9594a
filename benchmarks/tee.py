"""``python -m benchmarks tee``: how fast the output of eight workers reaches files and the console.

Each launcher tees every worker's standard output to a file and to the console.  All lines must be there at the end,
none lost, torn or mixed.  What does not live here: output that is not teed, which no launcher touches.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ._processes import DEADLINE_SECONDS, BenchmarkError, program
from ._report import Report, Samples, compile_sources, faster, in_turns

#: A folder and a worker's command -> the command line of a launcher.
Command = Callable[[str, Sequence[str]], list[str]]

CHATTER = str(Path(__file__).with_name("_chatter.py"))
WORKERS = 8


#: tee(1), once for each worker: it does not keep lines of different workers apart.
TEES = """for rank in $(seq 0 {last}); do RANK=$rank "$@" | tee "{folder}/$rank" & done; wait"""


def commands() -> dict[str, Command]:
    """Return name -> launcher that can tee."""
    quorate, torchrun = program("quorate"), program("torchrun")
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")
    found = {"quorate": partial(_elastic, [quorate, "run"])}
    if torchrun is not None:
        found["torchrun"] = partial(_elastic, [torchrun])
    return {**found, "tee(1)": _tees}


def _elastic(launcher: Sequence[str], folder: str, worker: Sequence[str]) -> list[str]:
    flags = ["--standalone", f"--nproc-per-node={WORKERS}", "--tee=1", f"--log-dir={folder}"]
    return [*launcher, *flags, *worker]


def _tees(folder: str, worker: Sequence[str]) -> list[str]:
    return ["sh", "-c", TEES.format(last=WORKERS - 1, folder=folder), "sh", sys.executable, *worker]


def microseconds_a_line(command: Command, count: int) -> tuple[float, str]:
    """Return the time per line, and what is wrong with the lines (``""``: all are there, whole and in order).

    The time is from the moment that all workers are ready and may begin until the last line is on the console.

    Raises:
        BenchmarkError: the launcher failed.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pipes = [os.path.join(folder, name) for name in ("ready", "go")]
        ready, go = (_open_pipe(path, stack) for path in pipes)
        argv = command(folder, [CHATTER, str(count), *pipes])
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        assert process.stdout is not None
        console = process.stdout.fileno()
        chunks: list[bytes] = []
        waiting = WORKERS
        began = last = 0.0
        while True:
            readable, _, _ = select.select([console, ready] if waiting else [console], [], [], DEADLINE_SECONDS)
            if not readable:
                process.kill()
                raise BenchmarkError(f"{argv[0]} printed nothing for {DEADLINE_SECONDS:g} s")
            for descriptor in readable:
                data = os.read(descriptor, 1 << 20)
                if descriptor == ready:
                    waiting -= len(data)
                    if not waiting:
                        began = time.monotonic()
                        os.write(go, bytes(WORKERS))
                else:
                    last = time.monotonic() if data else last
                    chunks.append(data)
            if chunks and not chunks[-1]:
                break
        process.stdout.close()
        if process.wait() != 0:
            raise BenchmarkError(f"{argv[0]} failed with exit code {process.returncode}")
    return (last - began) * 1e6 / (WORKERS * count), _problem_with(b"".join(chunks), count)


def _open_pipe(path: str, stack: ExitStack) -> int:
    """Make a named pipe and open it for reading and writing: opening does not block, and it never ends."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    stack.callback(os.close, descriptor)
    return descriptor


def _problem_with(output: bytes, count: int) -> str:
    seen: dict[int, int] = dict.fromkeys(range(WORKERS), 0)
    for line in output.splitlines():
        prefix, _, rest = line.partition(b"]:")
        fields = (rest if rest else prefix).split()
        if len(fields) != 3 or not fields[0].isdigit() or set(fields[2]) != {ord("x")}:
            continue  # a launcher's own output
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
        for name, command in in_turns(commands().items(), repeats):
            cost, problem = microseconds_a_line(command, count)
            samples.setdefault(name, []).append(cost)
            damaged[name] = damaged.get(name, 0) + bool(problem)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    whole = [
        f"target {name} loses, tears and mixes nothing: {'met' if not runs else f'MISSED in {runs} of {repeats} runs'}"
        for name, runs in damaged.items()
        if name != "tee(1)"  # which does not know of the other workers
    ]
    report.add("teed output of 8 workers, microseconds a line", samples, [*faster("torchrun", samples, 3.0), *whole])
    report.write(options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
