"""``python -m quorate_torchrun`` is ``quorate run``: the same flags, messages and exit codes."""

from __future__ import annotations

import os
import sys

from quorate.cli import main
from quorate_torchrun._environment import deactivate

if __name__ == "__main__":
    deactivate(os.environ)
    sys.exit(main(["run", *sys.argv[1:]]))
