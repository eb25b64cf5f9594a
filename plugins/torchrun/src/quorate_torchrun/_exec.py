"""``quorate exec -- COMMAND …``: a command in which torch's launchers are quorate's.

The command's environment gets a folder with a ``sitecustomize`` first on ``PYTHONPATH``, a folder with a ``torchrun``
first on ``PATH``, and ``QUORATE_EXEC``.  Files of torch stay as they are, and workers get the environment without all
that.  What does not live here: the import hook (``_hook``).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, MutableMapping, Sequence

from attrs import evolve

from quorate import LaunchConfig, UsageError

__all__ = ["MARK", "SHIM", "activate", "deactivate", "execute", "without_hook"]

#: Set to the Python interpreter while torch's launchers are quorate's.
MARK = "QUORATE_EXEC"
SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_shim")
_FOLDERS = {"PATH": os.path.join(SHIM, "bin"), "PYTHONPATH": os.path.join(SHIM, "site")}
_USAGE = """\
usage: quorate exec [--] COMMAND [ARGUMENTS]

Runs COMMAND with torch's launchers led to quorate, in its Python processes and those that they start: torchrun,
python -m torch.distributed.run, elastic_launch.  The workers' own environment is not changed.
"""


def execute(argv: Sequence[str]) -> int:
    """Carry out ``quorate exec ARGV``: this process becomes the command.

    Raises:
        UsageError: there is no command, or no such program.
    """
    if argv[:1] in (["--help"], ["-h"]):
        sys.stdout.write(_USAGE)
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
    sys.stderr.write("quorate: note: torch's launchers are run by quorate in this command and what it starts\n")
    sys.stderr.flush()
    os.execve(program, command, environment)


def activate(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` with the folders and the mark."""
    result = {**environment, MARK: sys.executable}
    for name, folder in _FOLDERS.items():
        others = [each for each in _split(environment.get(name, "")) if each != folder]
        if name == "PATH" and not others:
            others = os.defpath.split(os.pathsep)
        result[name] = os.pathsep.join([folder, *others])
    return result


def without_hook(config: LaunchConfig, environment: Mapping[str, str]) -> LaunchConfig:
    """Return ``config`` for workers whose environment is that of a process before ``quorate exec``."""
    if not environment.get(MARK):
        return config
    # Set and not removed, because workers inherit this process's environment; empty is as good as unset to Python.
    undone = {MARK: "", **_without_folders(environment)}
    return evolve(config, environment={**undone, **config.environment})


def deactivate(environment: MutableMapping[str, str]) -> None:
    """Undo :func:`activate` in ``environment``."""
    if environment.pop(MARK, ""):
        for name, value in _without_folders(environment).items():
            if value:
                environment[name] = value
            else:
                environment.pop(name, None)


def _without_folders(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: os.pathsep.join(each for each in _split(environment.get(name, "")) if each != folder)
        for name, folder in _FOLDERS.items()
    }


def _split(folders: str) -> list[str]:
    return folders.split(os.pathsep) if folders else []
