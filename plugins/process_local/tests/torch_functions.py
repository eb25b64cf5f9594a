"""Functions of a module that imports torch at its head, as a training program's does."""

from __future__ import annotations

import gc
import sys
from typing import TextIO

import torch


class Notes:
    """Of the program's own: its file is written out by the last collection, or never."""

    file: TextIO | None = None


def collector() -> tuple[bool, tuple[int, ...], int, str, list[str]]:
    """Return whether it runs, its thresholds, what is frozen, and what shows how torch was imported."""
    loader = torch.__spec__.loader
    finders = [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path]
    return gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), str(sorted(vars(loader))), finders


def take_notes(path: str) -> None:
    Notes.file = open(path, "w")  # noqa: SIM115 - left to the interpreter's end
    Notes.file.write("noted")
