"""``python -m quorate.testing.simulate``: play random scenarios, or one again.

python -m quorate.testing.simulate --seeds 1000        seeds 0 to 999
python -m quorate.testing.simulate --seed 4711         one seed; a broken law is shown as a shrunk transcript
python -m quorate.testing.simulate --seed 4711 --transcript   the transcript even if no law is broken
python -m quorate.testing.simulate --nodes 10000       one large job: join, fail, restart, succeed
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from ..clock import monotonic
from ._simulation import SimulationError
from ._simulation_large import play_large
from ._simulation_scenario import Result, make_scenario, play
from ._simulation_shrinking import shrink

__all__ = ["explain_failure", "main", "replay_command"]


def replay_command(seed: int) -> str:
    """Return the one command that plays ``seed`` again."""
    return f"python -m quorate.testing.simulate --seed {seed}"


def explain_failure(error: SimulationError, most_tries: int = 400) -> str:
    """Return the report on a broken law: the seed, the replay command, the shrunk scenario and its transcript."""
    shrunk = shrink(make_scenario(error.seed), error.law, most_tries)
    lines = [str(error), f"replay: {replay_command(error.seed)}", "", "shrunk to:", str(shrunk), ""]
    try:
        play(shrunk)
    except SimulationError as again:
        lines += again.transcript
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m quorate.testing.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--seeds", type=int, default=100, help="how many to play (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument(
        "--transcript", action="store_true", help="with --seed: print the transcript even if no law is broken"
    )
    parser.add_argument("--nodes", type=int, help="instead: one job with so many nodes")
    options = parser.parse_args(arguments)
    if options.nodes is not None:
        return _play_large(options.nodes)
    if options.seed is not None:
        return _play_one(options.seed, options.transcript)
    return _play_many(options.first, options.seeds)


def _play_one(seed: int, transcript: bool) -> int:
    scenario = make_scenario(seed)
    try:
        result = play(scenario)
    except SimulationError as error:
        print(explain_failure(error))
        return 1
    if transcript:
        print(scenario, *result.transcript, sep="\n")
    print(f"seed {seed}: all laws kept in {result.rounds} round(s), {result.virtual_seconds:.0f} s of virtual time")
    return 0


def _play_many(first: int, number: int) -> int:
    started_at, counts, node_seconds, broken = monotonic(), Counter[str](), 0.0, Counter[str]()
    for seed in range(first, first + number):
        try:
            result: Result = play(make_scenario(seed))
            counts += result.counts
            node_seconds += result.node_seconds
        except SimulationError as error:
            broken[error.law.value] += 1
            print(f"seed {seed}: {error.law.value}: {error.problem}; {replay_command(seed)}", flush=True)
    print(
        f"{number} seed(s) from {first}: {node_seconds / 3600:.1f} simulated node-hours, "
        f"{sum(counts.values())} faults, {sum(broken.values())} broken law(s), in {monotonic() - started_at:.1f} s"
    )
    return 1 if broken else 0


def _play_large(nodes: int) -> int:
    for line in play_large(nodes):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
