"""Finds the entry points of group ``quorate`` by looking at the installed distributions' own files.

A scan with ``importlib.metadata`` parses every distribution's metadata (tens of milliseconds before the first worker
can start).  This one opens only the ``entry_points.txt`` files and reads one group.  What does not live here: checking
what was found (:mod:`quorate.plugins`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, final

from attrs import frozen

from .files import read_bytes

GROUP = "quorate"
#: Entry points of subcommands of ``quorate``.
COMMANDS_GROUP = "quorate.commands"


@final
@frozen
class FoundPlugin:
    """An entry point: its name, its ``module:attribute``, and the distribution that declares it.

    ``str()`` names distribution, version and entry point, for messages.
    """

    name: str
    target: str
    distribution: str
    version: str

    def load(self) -> Any:
        """Import the module and return the attribute; raises whatever that raises."""
        module, _, attribute = self.target.partition(":")
        value: Any = import_module(module)
        for part in attribute.split(".") if attribute else ():
            value = getattr(value, part)
        return value

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.name})" if self.distribution else self.name


def find_plugins(paths: Sequence[str] | None = None, group: str = GROUP) -> list[FoundPlugin]:
    """Return the entry points of ``group`` on ``paths`` (default ``sys.path``), sorted by name.

    As with imports, a distribution found earlier on the path hides the same distribution found later.  Without
    ``paths`` the current directory is left out, whichever entry of ``sys.path`` names it: plugins are installed, and do
    not lie where a person happens to work.
    """
    seen: set[str] = set()
    found: list[FoundPlugin] = []
    for path in _installed_paths() if paths is None else paths:
        for folder, distribution, version in _distributions(path or "."):
            key = distribution.replace("-", "_").replace(".", "_").lower()
            if key in seen:
                continue
            seen.add(key)
            found.extend(
                FoundPlugin(name, target, distribution.replace("_", "-"), version)
                for name, target in _entry_points(folder, group)
            )
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def _installed_paths() -> list[str]:
    try:
        here = os.stat(".")
    except OSError:  # it was deleted
        return [path for path in sys.path if os.path.isabs(path)]
    return [path for path in sys.path if os.path.isabs(path) and not _is_folder(path, here)]


def _is_folder(path: str, folder: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), folder)
    except OSError:
        return False


def _distributions(path: str) -> Iterator[tuple[str, str, str]]:
    try:
        names = os.listdir(path)
    except OSError:
        return
    for entry in names:
        if entry.endswith((".dist-info", ".egg-info")):
            distribution, _, version = entry.rpartition(".")[0].partition("-")
            yield os.path.join(path, entry), distribution, version.partition("-py")[0]


def _entry_points(folder: str, group: str) -> Iterator[tuple[str, str]]:
    data = read_bytes(os.path.join(folder, "entry_points.txt"), regular=True)
    if f"[{group}]".encode() not in data:
        return
    text = data.decode("utf-8", "replace")
    inside = False
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line:
            name, _, target = line.partition("=")
            yield name.strip(), target.strip()
