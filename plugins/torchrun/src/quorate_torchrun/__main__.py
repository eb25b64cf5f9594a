"""``python -m quorate_torchrun`` is ``quorate run``: the same flags, messages and exit codes."""

from __future__ import annotations

import sys

from quorate.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
