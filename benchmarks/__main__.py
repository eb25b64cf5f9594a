"""``python -m benchmarks NAME [ARGUMENTS]`` runs ``benchmarks/NAME.py``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> int:
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print(f"usage: python -m benchmarks {{{','.join(known)}}} [ARGUMENTS]", file=sys.stderr)
        return 2
    code: int = import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
