"""Spares a function worker the garbage collections of ``import torch``, a quarter of that import's time.

The import makes a quarter of a million objects that stay until the process ends.  To look for garbage among them takes
a tenth of a second while it goes on, and as long again when the interpreter ends.  So the collector rests during the
import, and what it has made is frozen (:func:`gc.freeze`).  What the program makes itself, its own modules and classes
included, is collected as ever: destructors run that a program counts on.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, final

__all__ = ["PROLOGUE", "rest_collector_at_import"]

#: What a spawned interpreter runs first.  Its main module, which may import torch, comes before anything unpickled.
PROLOGUE = f"""
try:
    from {__name__} import rest_collector_at_import
except ImportError:
    pass
else:
    rest_collector_at_import()
"""


def rest_collector_at_import() -> None:
    """Have the first ``import torch`` of this process done without collections, if it is still to come."""
    if "torch" not in sys.modules and not any(isinstance(finder, _TorchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchFinder())


@final
class _TorchFinder(MetaPathFinder):
    """Finds torch where the other finders do, and leaves once it is imported; to ask for its spec changes nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._prepare(spec.loader)
                return spec
        return None

    def _prepare(self, loader: Any) -> None:
        """Replace the method of this one loader until it is called, so that the module's loader is the usual one."""
        run: Callable[[ModuleType], None] | None = getattr(loader, "exec_module", None)
        if run is None or not hasattr(loader, "__dict__"):
            return

        def run_without_collections(module: ModuleType) -> None:
            del loader.exec_module
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            is_collecting = gc.isenabled()
            gc.disable()
            try:
                run(module)
                if is_collecting:
                    gc.freeze()
            finally:
                if is_collecting:
                    gc.enable()

        loader.exec_module = run_without_collections
