"""``python -m benchmarks NAME [ARGUMENTS]`` runs ``benchmarks/NAME.py``; ``all`` runs each in turn, the table last."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> int:
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in {*known, "all"}:
        print(f"usage: python -m benchmarks {{{','.join(known)},all}} [ARGUMENTS]", file=sys.stderr)
        return 2
    codes: list[int] = []
    everything = sorted(known, key=lambda name: name == "table")
    for name in everything if sys.argv[1] == "all" else [sys.argv[1]]:
        if sys.argv[1] == "all":
            print(f"\n# {name}\n", flush=True)
        codes.append(import_module(f"benchmarks.{name}").main(sys.argv[2:]))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
