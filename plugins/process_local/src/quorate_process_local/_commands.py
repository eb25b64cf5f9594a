"""Finds the file of a command, and explains why a command cannot be started.

What does not live here: starting it (:mod:`._exec`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import BuiltinFunctionType

from quorate import errors
from quorate.errors import StartError
from quorate.proc import parent_death_command


def find_command(command: str, environment: Mapping[str, str], local_rank: int = 0) -> str:
    """Return the file that ``command`` names for a worker with ``environment`` (its own ``PATH`` counts).

    Raises:
        StartError: not found, a folder, or not executable.
    """
    if not command:
        raise StartError("the command is empty; name a program to run", local_rank=local_rank)
    if "/" in command:
        candidates = [command]
    else:
        path = environment.get("PATH", os.defpath)
        candidates = [os.path.join(folder or ".", command) for folder in path.split(os.pathsep)]
    found_but = ""
    for candidate in candidates:
        if os.path.isdir(candidate):
            found_but = found_but or f"{candidate} is a folder, not a program"
        elif os.access(candidate, os.X_OK):
            return candidate
        elif os.path.exists(candidate):
            found_but = found_but or (
                f"{candidate} is not executable; make it so with chmod +x, or name its interpreter in front of it"
            )
    if found_but:
        raise StartError(f"the worker's command cannot be started: {found_but}", local_rank=local_rank)
    where = f"there is no file {command}" if "/" in command else f"{command!r} is in no folder of the worker's PATH"
    raise StartError(f"the worker's command was not found: {where}", local_rank=local_rank)


def _has_known_format(path: str) -> bool:
    """Return whether ``path`` is a native program, or a script whose interpreter exists.

    Anything else is started without a wrapper in between, so that the kernel's refusal is reported.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(256)
    except OSError:
        return True  # executable but not readable: the kernel decides
    if head.startswith(b"\x7fELF"):
        return True
    if not head.startswith(b"#!"):
        return False
    words = head[2:].split(b"\n", 1)[0].split()
    return bool(words) and os.access(words[0], os.X_OK)


def wrapper_for(path: str) -> tuple[str, ...]:
    """Return the words before a command by which the kernel kills it with the agent, () where they would be in the way.

    A debugger (debugpy, pydevd) that follows a program into its children replaces ``os.posix_spawn`` and looks for
    Python in the command, which the wrapper would hide.  The guardian then guards alone.
    """
    if not isinstance(os.posix_spawn, BuiltinFunctionType) or not _has_known_format(path):
        return ()
    return parent_death_command(os.environ.get("PATH", os.defpath))


def explain(path: str, error: OSError, local_rank: int) -> StartError:
    """Turn the kernel's refusal to start ``path`` into a sentence with a remedy."""
    number = error.errno
    if number == errno.ENOEXEC:
        why = f"{path} is neither a program of this machine nor a script with a #! line"
    elif number == errno.ENOENT:
        why = f"{path} needs an interpreter that does not exist; look at its #! line"
    elif number == errno.E2BIG:
        why = "its arguments and environment are larger than the kernel allows; pass less of them"
    else:
        why = remedy_for(error) or f"{path}: {error.strerror or error}"
    return StartError(f"the worker of local rank {local_rank} cannot be started: {why}", local_rank=local_rank)


def remedy_for(error: OSError | RuntimeError) -> str:
    """Return what a person can do where a limit of the system is reached, ``""`` for any other error."""
    if isinstance(error, RuntimeError):  # of threading: its text does not say which limit
        return f"{error}; raise the limit on processes and threads (ulimit -u, cgroup limits)"
    remedy = errors.remedy_for(error)
    return f"{error.strerror}; {remedy}" if remedy else ""


def cannot_start(error: OSError | RuntimeError) -> StartError:
    """Turn a limit of the system that was met while workers were started into an error with a remedy."""
    why = remedy_for(error) or str(error)  # the text of an OSError names the file
    return StartError(f"the workers cannot be started: {why}")


def working_folder(method: str, local_rank: int) -> str:
    """Return this process's working folder, in which a worker of the start method ``method`` begins.

    Raises:
        StartError: it has been removed.
    """
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise StartError(
            f"the working folder of this process has been removed, and a worker of the start method {method} begins "
            "there; change to another folder (os.chdir)",
            local_rank=local_rank,
        ) from error
