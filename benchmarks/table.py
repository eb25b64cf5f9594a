"""``python -m benchmarks table``: the newest results of every benchmark as the tables of ``docs/performance.md``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ._report import OURS, RESULTS


def main(argv: Sequence[str] | None = None) -> int:
    newest = {path.name.rsplit("-", 2)[0]: path for path in sorted(RESULTS.glob("*-*-*.json"))}
    for name, path in newest.items():
        result = json.loads(path.read_text())
        machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        print(f"\n### {name}\n\n{machine}\n")
        print("\n".join(table_of(result["rows"])))
    return 0


def table_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of one benchmark's table: each contender's median, and the targets."""
    names = list(dict.fromkeys(name for row in rows for name in row["samples"]))
    names.sort(key=lambda name: not name.startswith(OURS))
    yield "| | " + " | ".join(names) + " | target |"
    yield "|---" * (len(names) + 2) + "|"
    for row in rows:
        cells = [_median(row["samples"].get(name, ())) for name in names]
        targets = [text.removeprefix("target ") for text in row["targets"] if text.startswith("target ")]
        yield " | ".join([f"| {row['title']}", *cells, "; ".join(targets)]) + " |"


def _median(samples: Sequence[float]) -> str:
    if not samples:
        return ""
    median = statistics.median(samples)
    return f"{median:,.0f}" if abs(median) >= 100 else f"{median:.3g}"
