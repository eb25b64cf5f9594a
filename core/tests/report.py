"""``python -m quorate.testing.report``: what the kit and the simulation have verified, as ``docs/verification.md``.

    python -m quorate.testing.report --seeds 10000 --kit-mutants core/tests/mutants.py --write docs/verification.md

Only the list of defects below is written by hand: laws, mutants and counts are what the code and a run say.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, final

from attrs import frozen

from ._law import all_laws
from ._simulation import SimulationError
from ._simulation_laws import LAWS
from ._simulation_mutants import MUTANTS, first_seed_that_finds
from ._simulation_scenario import make_scenario, play
from .simulate import replay_command

__all__ = ["DEFECTS", "Defect", "main"]


@final
@frozen
class Defect:
    """One defect that was found and fixed; ``shown`` is the seed, story or test that shows it when it is back."""

    what: str
    shown: str


DEFECTS: tuple[Defect, ...] = (
    Defect(
        "A worker failed while the store was away. After `close_timeout` its agent asked for the next round before the "
        "end of this one was recorded; the wish was dropped, and the node kept the whole job waiting for ever. It is "
        "now kept until the end is known.",
        "seeds 478, 1562, 2799",
    ),
    Defect(
        "A node that left while the end it had to tell was still waiting for the store told only that it left: the "
        "others went on with a job that had failed for good. It now tells the end again.",
        "`test_a_node_that_leaves_with_an_end_unsaid_says_that_one`",
    ),
    Defect(
        "The successor of a sealer that died forgot whom it had just found dead, and sealed a round with the dead node "
        "in it: workers started, waited for it for a lease, and were stopped again. It now remembers.",
        "transcript `sealer_dies`, `test_the_sealer_dies_while_gathering_and_the_next_ticket_seals`",
    ),
    Defect(
        "A node that was paused during a short outage counted the pause as outage, and gave up the moment it woke, "
        "though the store had long been back. It now asks once more.",
        "seed 11924, `test_a_node_that_was_paused_through_an_outage_asks_once_more_before_it_gives_up`",
    ),
    Defect(
        "A sealer whose store had not answered for two seconds judged by its watch alone that the others stood still: "
        "it sealed a round without survivors that were still stopping their workers, and two worlds ran. Silence now "
        "counts only as far as it was seen.",
        "seed 1764",
    ),
    Defect(
        "A node that was done with its workers showed no more sign of life. A standby, which watched one member after "
        "the other, took it for lost together with one that had been away and was back, and ended a round that ran. "
        "Nodes that are done now go on beating, and a standby looks at all members at once before it ends their round "
        "(which also takes two leases now instead of two per dead member).",
        "seed 24310, `test_a_standby_takes_nobody_for_lost_who_is_done_or_has_come_back`",
    ),
    Defect(
        "A law's own: a node that had its ticket and not yet written its record was taken for one that had been in "
        "line from the beginning, and a round without it for a broken law.",
        "seed 13554",
    ),
    Defect(
        "While a crowd trickled in, the sealer woke for every single node, read again whether each of the others had "
        "left, and put all their names into one sentence: quadratic in the number of nodes. It now wakes the less "
        "often the more are missing, reads each heartbeat once, and names sixteen.",
        "`python -m quorate.testing.simulate --nodes 10000`",
    ),
    Defect(
        "Whoever came after a job's end could begin a round of its own: the writer of the end counts the round.",
        "the kit, law `closing_is_final`",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a law was broken or a mutant was not found."""
    parser = argparse.ArgumentParser(prog="python -m quorate.testing.report", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many to play (default: %(default)s)")
    parser.add_argument("--kit-mutants", type=Path, help="the file with the mutants of the conformance kit")
    parser.add_argument("--write", type=Path, help="the page to write; without it, print")
    options = parser.parse_args(arguments)
    lines, good = _page(options.seeds, options.kit_mutants)
    text = "\n".join(lines) + "\n"
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")
    return 0 if good else 1


def _page(seeds: int, kit_mutants: Path | None) -> tuple[list[str], bool]:
    simulation, good = _simulation(seeds)
    mutants, all_found = _mutants()
    lines = [
        "# What has been verified",
        "",
        "Written by `python -m quorate.testing.report`; do not edit. How to run a kit on your own backend is in "
        "[conformance.md](conformance.md), what the simulation shares with production in "
        "[decision 18](decisions/0018-what-the-simulation-shares.md).",
        "",
        *simulation,
        *mutants,
        *_kit(kit_mutants),
        "## Defects found on the way",
        "",
        "Each is fixed, and what shows it is part of the tests. (A seed plays another story once the protocol has "
        "changed; those named here showed the defect when it was found.)",
        "",
        "| what was wrong | shown by |",
        "|---|---|",
        *(f"| {defect.what} | {defect.shown} |" for defect in DEFECTS),
    ]
    return lines, good and all_found


def _simulation(seeds: int) -> tuple[list[str], bool]:
    counts, broken = Counter[str](), list[SimulationError]()
    node_seconds, rounds = 0.0, 0
    for seed in range(seeds):
        try:
            result = play(make_scenario(seed))
        except SimulationError as error:
            broken.append(error)
            continue
        counts += result.counts
        node_seconds, rounds = node_seconds + result.node_seconds, rounds + result.rounds
    lines = [
        "## The simulation",
        "",
        f"{seeds} random scenarios (seeds 0 to {seeds - 1}): {rounds} rounds, {node_seconds / 3600:.1f} simulated "
        f"node-hours, {sum(counts.values())} faults. Scenarios that broke a law: {len(broken)}.",
        "",
        *(f"- {error.law}: {error.problem}: `{replay_command(error.seed)}`" for error in broken),
        *([""] if broken else []),
        "| fault | how often |",
        "|---|---|",
        *(f"| {kind} | {number} |" for kind, number in sorted(counts.items())),
        "",
        f"Its {len(LAWS)} laws:",
        "",
        *(f"- **{name}**: {text}" for name, text in LAWS.items()),
        "",
    ]
    return lines, not broken


def _mutants() -> tuple[list[str], bool]:
    lines = [
        "## Wrong protocols that the simulation finds",
        "",
        "| wrong protocol | what it does | found by seed | by law |",
        "|---|---|---|---|",
    ]
    missed = 0
    for mutant in MUTANTS:
        found = first_seed_that_finds(mutant, most_seeds=2000)
        missed += found is None
        seed, law = found if found is not None else ("**not found**", "")
        lines.append(f"| {mutant.name} | {mutant.what} | {seed} | {law} |")
    return [*lines, ""], missed == 0


def _kit(path: Path | None) -> list[str]:
    laws = list(all_laws())
    lines = ["## The conformance kit", "", f"{len(laws)} laws of backends."]
    if path is None or not path.exists():
        return [*lines, ""]
    mutants: Iterable[Any] = _load(path).MUTANTS
    rows = [f"| {mutant.law} | {mutant.what} |" for mutant in mutants]
    lines[-1] += f" {len(rows)} wrong backends, each caught by the law that names it (`test_conformance_mutants`):"
    return [*lines, "", "| law | the wrong backend that it catches |", "|---|---|", *rows, ""]


def _load(path: Path) -> Any:
    from importlib import util

    spec = util.spec_from_file_location("kit_mutants", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


if __name__ == "__main__":
    sys.exit(main())
