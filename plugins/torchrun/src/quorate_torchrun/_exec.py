"""``quorate exec -- COMMAND …``: a command in which torch's launchers are quorate's.

The command's environment gets a folder with a ``sitecustomize`` first on ``PYTHONPATH``, a folder with a ``torchrun``
first on ``PATH``, and ``QUORATE_EXEC`` (``_environment``).  Files of torch stay as they are, and workers get the
environment without all that.  What does not live here: the import hook (``_hook``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from quorate import UsageError
from quorate.notices import note, write_output

from ._environment import activate

_USAGE = """\
usage: quorate exec [--] COMMAND [ARGUMENTS]

Runs COMMAND.  In COMMAND and in the processes that it starts, quorate runs in the place of torch's launchers: torchrun,
python -m torch.distributed.run, elastic_launch.  The workers' own environment is not changed.
"""


def execute(argv: Sequence[str]) -> int:
    """Carry out ``quorate exec ARGV``: this process becomes the command.

    Raises:
        UsageError: no command is given, or its program is not found.
    """
    if argv[:1] in (["--help"], ["-h"]):
        write_output(_USAGE.rstrip())
        return 0
    command = list(argv[1:] if argv[:1] == ["--"] else argv)
    if not command:
        raise UsageError("a command is missing; write: quorate exec -- COMMAND [ARGUMENTS]")
    if command[0].startswith("-"):
        raise UsageError(f"quorate exec has no flag {command[0]}; write: quorate exec -- COMMAND [ARGUMENTS]")
    environment = activate(os.environ)
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise UsageError(f"the program {command[0]} is not an executable on PATH; check its name and permissions")
    note("torch's launchers are run by quorate in this command and what it starts")
    return os.execve(program, command, environment)
