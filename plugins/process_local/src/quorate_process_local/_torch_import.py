"""Spares a function worker the garbage collections of ``import torch``, a quarter of that import's time.

The import makes a quarter of a million objects that stay until the process ends.  To look for garbage among them takes
a tenth of a second while it goes on, and three times as long when the interpreter ends.  So the collector rests during
the import, and afterwards everything that is there is frozen (:func:`gc.freeze`), unless something was there before
whose destructor the program may count on.  What is made afterwards is collected as ever.

A spawned interpreter runs this file before ``sys.path`` is the agent's, so that it imports nothing that a program might
have a version of its own of: all three are parts of the interpreter.
"""

from __future__ import annotations

import gc
import sys
from _io import BufferedRandom, BufferedRWPair, BufferedWriter, TextIOWrapper

TYPE_CHECKING = False  # typing's own is not imported, see above
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["PROLOGUE", "rest_collector_at_import"]

#: What a spawned interpreter runs first.  Its main module, which may import torch, comes before anything unpickled.
PROLOGUE = f"""
names = {{"__name__": {__name__!r}, "__file__": {__file__!r}}}
try:
    exec(__import__("_frozen_importlib_external").SourceFileLoader(*names.values()).get_code({__name__!r}), names)
    names["rest_collector_at_import"]()
except Exception:
    pass
del names
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
                find: Any = getattr(finder, "find_spec", None) if is_behind else None
                spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
                if spec is not None:
                    self._prepare(spec.loader)
                    return spec
                is_behind = is_behind or finder is self
            return None
        finally:
            self._is_asking = False

    def _prepare(self, loader: Any) -> None:
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
            is_to_freeze = is_collecting and not _is_anything_to_let_go()
            gc.disable()
            try:
                run(module)
                if is_to_freeze:
                    gc.freeze()
            finally:
                if is_collecting:
                    gc.enable()

        own["exec_module"] = run_without_collections


def _is_anything_to_let_go() -> bool:
    """Return whether there is an object whose end, by the last collection, the program may count on.

    That is a class of the program, which may hold anything later; an instance of one, or a function with variables of
    its own; an instance of a library's class with a destructor written in Python; and a file that is open for writing.
    """
    own_streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    spared = {id(part) for stream in own_streams for part in (stream, getattr(stream, "buffer", None))}
    matters: dict[type, bool] = {}
    try:
        for each in gc.get_objects():
            kind = type(each)
            if kind not in matters:
                matters[kind] = _is_of_program(kind.__module__) or _has_destructor(kind)
            if kind in _FILES:
                if id(each) not in spared and not each.closed and each.writable():
                    return True
            elif matters[kind] or (_may_hold_more(kind, each) and _is_of_program(each.__module__)):
                return True
    except Exception:  # of a class whose attributes are computed
        return True
    return False


_FILES = (BufferedRandom, BufferedRWPair, BufferedWriter, TextIOWrapper)
_FUNCTION = type(rest_collector_at_import)
_is_known: dict[str, bool] = {}


def _may_hold_more(kind: type, each: Any) -> bool:
    """Return whether ``each``, of type ``kind``, is a class or a closure: what it holds may change."""
    return issubclass(kind, type) or (kind is _FUNCTION and bool(each.__closure__))


def _has_destructor(kind: type) -> bool:
    """Return whether an installed library has written a destructor for instances of ``kind``."""
    written = (vars(base)["__del__"] for base in kind.__mro__ if "__del__" in vars(base))
    return any(type(method) is _FUNCTION and not _is_standard(method.__module__) for method in written)


def _is_standard(module_name: str) -> bool:
    root = module_name.partition(".")[0]
    return root in sys.stdlib_module_names or root.startswith("quorate")


def _is_of_program(module_name: object) -> bool:
    """Return whether a module belongs to the program: not to Python, to quorate or to an installed library."""
    if not isinstance(module_name, str) or _is_standard(module_name):
        return False
    if module_name not in _is_known:
        path = getattr(sys.modules.get(module_name), "__file__", None) or ""
        _is_known[module_name] = not any(folder in path.replace("\\", "/").split("/") for folder in _INSTALLED)
    return _is_known[module_name]
