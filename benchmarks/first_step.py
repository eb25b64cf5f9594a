"""``python -m benchmarks first_step``: from the command to the first step of data-parallel training on all workers.

quorate with its warm starter (``quorate``), torchrun, torchrun and accelerate by ``quorate exec``, and accelerate's own
launcher take turns in changing orders.  Each of two workers prints one line after its first step.  What does not live
here: how launchers are started and read (``_processes.py``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ._processes import BenchmarkError, Launcher, Peer, elastic, program
from ._report import OURS, Report, Samples, at_most, compile_sources, in_turns

WORKER = str(Path(__file__).with_name("_step_worker.py"))
WORKERS = 2
WARM_RATIO = 0.65


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks first_step", description="Compare first steps.")
    parser.add_argument("--quick", action="store_true", help="fewer runs, for a first look")
    parser.add_argument("--repeats", type=int, help="runs of each launcher")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    options = parser.parse_args(argv)
    try:
        report = measure(options.repeats or (2 if options.quick else 7))
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def measure(repeats: int) -> Report:
    """Run and print the measurement."""
    compile_sources()
    peers, missing = find_contenders()
    for name in missing:
        print(f"{name} is not installed and is left out")
    report = Report("first_step", repeats)
    samples: Samples = {}
    for peer in in_turns(peers, repeats):
        with Launcher(peer, WORKERS) as launcher:
            for _ in range(WORKERS):
                launcher.next_pid()
            samples.setdefault(peer.name, []).append((time.monotonic() - launcher.began) * 1000)
            launcher.wait()
    title = f"command until all of {WORKERS} workers have taken their first step, ms"
    report.add(title, samples, at_most("torchrun", samples, WARM_RATIO))
    return report


def find_contenders() -> tuple[list[Peer], list[str]]:
    """Return the contenders, ours first, and the names of those that are not installed."""
    quorate, torchrun, accelerate = (program(name) for name in ("quorate", "torchrun", "accelerate"))
    if quorate is None:
        raise BenchmarkError("quorate is not installed beside this interpreter; run: make bench")
    modules = "torch,torch.distributed,torch.nn.parallel"
    peers = [
        elastic(OURS, [quorate, "run", "--start-method=warm", f"--preload={modules}"], WORKER),
        elastic("quorate run", [quorate, "run"], WORKER),
    ]
    if torchrun is not None:
        peers.append(elastic("torchrun", [torchrun], WORKER))
        # By name: a path would lead past the torchrun that "quorate exec" puts first.
        peers.append(elastic("quorate exec torchrun", [quorate, "exec", "--", "torchrun"], WORKER))
    if accelerate is not None:
        command = [accelerate, "launch", "--mixed_precision=no", "--dynamo_backend=no", "--num_machines=1"]
        peers.append(_accelerate("accelerate launch", command))
        peers.append(_accelerate("quorate exec accelerate", [quorate, "exec", "--", *command]))
    found = {"torchrun": torchrun, "accelerate": accelerate}
    return peers, [name for name, path in found.items() if path is None]


def _accelerate(name: str, command: Sequence[str]) -> Peer:
    return Peer(name, lambda n, args: [*command, "--multi_gpu", f"--num_processes={n}", WORKER, *args])


if __name__ == "__main__":
    sys.exit(main())
