"""Spares a function worker the garbage collections of ``import torch``, a quarter of that import's time.

The import makes a quarter of a million objects that stay until the process ends.  To look for garbage among them takes
a tenth of a second while it goes on, and three times as long when the interpreter ends.  So the collector rests during
the import, and afterwards everything that is there is frozen (:func:`gc.freeze`), unless the program had begun before
and may count on the last collection.  What is made afterwards is collected as ever.

A spawned interpreter runs this file before ``sys.path`` is the agent's, so that it imports only what
:mod:`multiprocessing.spawn` imports as well.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType

#: What a spawned interpreter runs first.  Its main module, which may import torch, comes before anything unpickled.
PROLOGUE = f"""
from importlib.machinery import SourceFileLoader
names = {{"__name__": {__name__!r}, "__file__": {__file__!r}}}
try:
    exec(SourceFileLoader(*names.values()).get_code({__name__!r}), names)
    names["rest_collector_at_import"]()
except Exception:
    pass
del names, SourceFileLoader
"""

#: Folders of installed distributions.
_INSTALLED = ("site-packages", "dist-packages")


def rest_collector_at_import() -> None:
    """Have the first ``import torch`` of this process done without collections, if it is still to come."""
    # By name: the prologue's class is another one.
    if "torch" not in sys.modules and not any(type(it).__name__ == _TorchFinder.__name__ for it in sys.meta_path):
        sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder:
    """Finds torch where the finders behind it do; to ask for its spec changes nothing.

    It stays in ``sys.meta_path`` and finds nothing more: to take it out would have another thread, which imports
    something at that moment, pass over a finder.
    """

    def __init__(self) -> None:
        self._is_asking = self._is_done = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the next finder finds; ``None`` for all but torch."""
        # The finders behind this one may ask all the others, this one included.
        if fullname != "torch" or self._is_done or self._is_asking:
            return None
        self._is_asking = True
        try:
            is_behind = False
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None) if is_behind else None
                spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
                if spec is not None:
                    self._prepare(spec.loader)
                    return spec
                is_behind = is_behind or finder is self
            return None
        finally:
            self._is_asking = False

    def _prepare(self, loader: object) -> None:
        """Replace the method of this one loader until it is called, so that the module's loader is the usual one.

        Not of a class, nor of a loader with a method of its own: one that loads other modules too is prepared already.
        """
        run: Callable[[ModuleType], None] | None = getattr(loader, "exec_module", None)
        own = getattr(loader, "__dict__", None)
        if run is None or not isinstance(own, dict) or "exec_module" in own:
            return

        def run_without_collections(module: ModuleType) -> None:
            if module.__name__ != "torch":
                run(module)
                return
            own.pop("exec_module", None)
            self._is_done = True
            is_collecting = gc.isenabled()
            is_to_freeze = is_collecting and not _has_program_begun()
            gc.disable()
            try:
                run(module)
                if is_to_freeze:
                    gc.freeze()
            finally:
                if is_collecting:
                    gc.enable()

        own["exec_module"] = run_without_collections


def _has_program_begun() -> bool:
    """Return whether a module of the program has defined a class or a function, which may come to hold anything."""
    for name, module in list(sys.modules.items()):
        if _is_of_program(name, module):
            for each in list(getattr(module, "__dict__", {}).values()):
                is_definition = issubclass(type(each), type) or type(each) is FunctionType
                if is_definition and each.__module__ == name:
                    return True
    return False


def _is_of_program(name: str, module: object) -> bool:
    """Return whether a module belongs to the program: not to Python, to quorate or to an installed library."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names or root.startswith("quorate"):
        return False
    path = getattr(module, "__file__", None) or ""
    return not any(folder in path.replace("\\", "/").split("/") for folder in _INSTALLED)
