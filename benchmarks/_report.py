"""Reports measurements: a table while they are made, a JSON file with every sample, and a picture.

Every claim is a ratio to a peer, or a bound, printed beside its measurement.  What does not live here: measuring.
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar, final

from quorate._discovery import find_plugins

__all__ = [
    "OURS",
    "Report",
    "Samples",
    "at_most",
    "bound",
    "compile_sources",
    "faster",
    "in_turns",
    "machine",
    "spread",
]

RESULTS = Path(__file__).with_name("results")
PICTURES = Path(__file__).parent.parent / "docs" / "performance"
OURS = "quorate"

#: launcher -> its samples, in the title's unit
Samples = dict[str, list[float]]
_Contender = TypeVar("_Contender")


def in_turns(contenders: Iterable[_Contender], repeats: int) -> Iterator[_Contender]:
    """Yield all contenders ``repeats`` times, each time in another order, the first time in the given one.

    In a fixed order each contender would always find the caches and dying processes of the same other one.  The orders
    are the same in every run.
    """
    order, choice = list(contenders), random.Random(0)
    for _ in range(repeats):
        yield from order
        choice.shuffle(order)


@final
class Report:
    """The measurements of one benchmark, printed as they come.

    Arguments:
        name: of the benchmark; names its files.
        repeats: runs of each contender, for the headline.
    """

    def __init__(self, name: str, repeats: int) -> None:
        self._name = name
        self._rows: list[tuple[str, Samples, list[str]]] = []
        facts = ", ".join(f"{key} {value}" for key, value in machine().items())
        print(f"{facts}; {repeats} runs each, interleaved")

    def add(self, title: str, samples: Samples, targets: Sequence[str] = ()) -> None:
        """Print one measurement and keep it."""
        self._rows.append((title, samples, list(targets)))
        print(f"\n{title}")
        ours = statistics.median(samples[OURS]) if OURS in samples else 0.0
        width = max(map(len, samples))
        for name, values in samples.items():
            ratio = "" if name == OURS or ours <= 0 else f"   {statistics.median(values) / ours:.2f} x ours"
            print(f"  {name:<{width}} {spread(values)}{ratio}")
        for target in targets:
            print(f"  {target}")

    def write(self, picture: bool = False) -> Path:
        """Write every sample as JSON and, with ``picture``, the medians as an SVG for the docs; returns the former."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / time.strftime(f"{self._name}-%Y%m%d-%H%M%S.json")
        rows = [{"title": title, "samples": samples, "targets": targets} for title, samples, targets in self._rows]
        path.write_text(json.dumps({"benchmark": self._name, "machine": machine(), "rows": rows}, indent=1))
        print(f"\nall samples: {path}")
        if picture:
            self._draw()
        return path

    def _draw(self) -> None:
        import matplotlib  # slow, and only needed with --picture

        matplotlib.use("svg")
        from matplotlib import pyplot  # after the choice of its backend

        figure, axes = pyplot.subplots(len(self._rows), 1, figsize=(8, 1.0 + 1.1 * len(self._rows)), squeeze=False)
        for axis, (title, samples, _) in zip(axes[:, 0], self._rows, strict=True):
            names = list(samples)[::-1]
            medians = [statistics.median(samples[name]) for name in names]
            low = [median - min(samples[name]) for name, median in zip(names, medians, strict=True)]
            high = [max(samples[name]) - median for name, median in zip(names, medians, strict=True)]
            colours = ["#2f6fdd" if name.startswith(OURS) else "#b8bec9" for name in names]
            axis.barh(names, medians, xerr=[low, high], color=colours, ecolor="#555555", height=0.7)
            axis.set_title(title, fontsize=8, loc="left")
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        PICTURES.mkdir(exist_ok=True)
        figure.savefig(PICTURES / f"{self._name}.svg", metadata={"Date": None})


# --- words ----------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Return median, minimum and maximum."""
    digits = 1 if statistics.median(values) >= 10 else 3
    if len(values) == 1:
        return f"{values[0]:8.{digits}f}"
    return f"{statistics.median(values):8.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def bound(target: str, samples: Samples, limit: float) -> str:
    """Return whether our median is at most ``limit``."""
    ours = statistics.median(samples[OURS])
    return f"target {target}: {_met(ours <= limit)} ({ours:.3g})"


def at_most(peer: str, samples: Samples, ratio: float = 1.0) -> list[str]:
    """Return whether our median is at most ``ratio`` times a peer's; nothing where the peer was not measured."""
    if peer not in samples:
        return []
    mine = statistics.median(samples[OURS]) / statistics.median(samples[peer])
    return [f"target at most {ratio:g} x {peer}: {_met(mine <= ratio)} ({mine:.2f} x)"]


def faster(peer: str, samples: Samples, ratio: float, ours: str = OURS) -> list[str]:
    """Return whether our median is at least ``ratio`` times below a peer's; nothing where it was not measured."""
    if peer not in samples:
        return []
    mine = statistics.median(samples[peer]) / statistics.median(samples[ours])
    return [f"target {ratio:g} x sooner than {peer}: {_met(mine >= ratio)} ({ours}: {mine:.1f} x)"]


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


# --- the machine ----------------------------------------------------------------------------------------------------


def machine() -> Mapping[str, str]:
    """Return what a reader needs to compare with measurements of their own."""
    facts = {"python": platform.python_version(), "cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    for name in ("quorate-core", "torch"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    return facts


def compile_sources() -> None:
    """Write quorate's bytecode, as an installer does: a checkout that may not write any would compile at each start."""
    for name in {found.distribution.replace("-", "_") for found in find_plugins()} | {"quorate"}:
        found = importlib.util.find_spec(name)
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            compileall.compile_dir(folder, quiet=1)
