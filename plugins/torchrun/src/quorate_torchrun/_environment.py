"""What ``quorate exec`` puts into a command's environment, and how that is undone.

Imported by every Python process of such a command, so that nothing is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

#: Set to the Python interpreter while torch's launchers are quorate's.
MARK = "QUORATE_EXEC"
_SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_shim")
_FOLDERS = {"PATH": os.path.join(_SHIM, "bin"), "PYTHONPATH": os.path.join(_SHIM, "site")}


def activate(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` with the mark, and the folders of the shims first."""
    result = {**environment, MARK: sys.executable}
    for name, folder in _FOLDERS.items():
        others = [each for each in _split(environment.get(name, "")) if each != folder]
        if name == "PATH" and not others:
            others = os.defpath.split(os.pathsep)
        result[name] = os.pathsep.join([folder, *others])
    return result


def deactivate(environment: MutableMapping[str, str]) -> None:
    """Undo :func:`activate` in ``environment``."""
    for name, value in without_hook(environment).items():
        if value:
            environment[name] = value
        else:
            environment.pop(name, None)


def without_hook(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of ``environment`` that :func:`activate` has changed, as they were; empty: not set."""
    if not environment.get(MARK):
        return {}
    result = {MARK: ""}
    for name, folder in _FOLDERS.items():
        result[name] = os.pathsep.join(each for each in _split(environment.get(name, "")) if each != folder)
    return result


def _split(folders: str) -> list[str]:
    return folders.split(os.pathsep) if folders else []
