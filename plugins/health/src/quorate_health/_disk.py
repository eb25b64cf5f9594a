"""The checks of the file systems where logs and temporary files go.

Each returns ``None``, or one sentence that names the trouble and the remedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache

from quorate.files import temporary_folder, write_byte
from quorate.services import AgentView

from ._resources import MEGABYTE

#: Where a user may say it, the first first.
_VARIABLES = ("TMPDIR", "TEMP", "TMP")


def check_log_dir(agent: AgentView) -> str | None:
    """Write one byte where logs and error files will go, into a file without a name."""
    folder, remedy = _logs(agent)
    existing = _first_existing(folder)
    if not os.path.isdir(existing):
        return None  # the command is wrong, and starting the workers gives the better message
    try:
        write_byte(existing)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        return f"nothing can be written in {folder}: {problem}; {remedy}"
    return None


def check_disk(agent: AgentView, least: float) -> str | None:
    """Judge the space where logs and temporary files go; ``least`` is in megabytes."""
    for folder, remedy in dict([_logs(agent), _temporary(agent.environment)]).items():
        try:
            room = os.statvfs(_first_existing(folder))
        except OSError as error:
            return f"{folder} cannot be looked at: {error.strerror}; {remedy}"
        # A file system that reports no size (some network ones) reports no free space either.
        free = room.f_bavail * room.f_frsize
        if room.f_blocks and free < least * MEGABYTE:
            few = f"{free // MEGABYTE} MB are free in {folder}, fewer than disk_free_mb={least:.15g}"
            return f"{few}; make room, or {remedy}"
        if room.f_files and not room.f_favail:
            return f"no more files can be made in {folder}: its file system has no free inode; make room, or {remedy}"
    return None


def _logs(agent: AgentView) -> tuple[str, str]:
    folder = agent.snapshot().log_dir
    return (folder, "set --log-dir to another folder") if folder else _temporary(agent.environment)


def _temporary(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the folder for temporary files, and the remedy."""
    return _chosen(*(environment.get(name, "") for name in _VARIABLES)), "set TMPDIR to another folder"


@lru_cache
def _chosen(*places: str) -> str:
    """Return the folder that was used first: when it is full later, temporary files still lie there."""
    try:
        return temporary_folder(dict(zip(_VARIABLES, places, strict=True)))[0]
    except OSError as error:
        return str(error.filename)


def _first_existing(path: str) -> str:
    """Return ``path``, or the first of its parents that exists; the rest is made when workers are started."""
    path = os.path.abspath(path)
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return path
