"""Leads torch's launchers to quorate in this process, by a hook in Python's import.

``torch.distributed.launcher.api.launch_agent`` is the one function that all of them call.  ``torch.distributed.run`` is
changed as well, for flags that only quorate has, and for ``python -m``.  What does not live here: what runs the hook
(``_shim/site/sitecustomize.py``), and the environment (``_exec``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, final

from ._environment import MARK

_LAUNCHER = "torch.distributed.launcher.api"
_RUN = "torch.distributed.run"
_NAMES = {
    _LAUNCHER: ("launch_agent",),
    _RUN: ("config_from_args", "get_args_parser", "main", "parse_args", "run"),
}
#: What ``python -m torch.distributed.run`` runs.
_MAIN = "from runpy import run_module\nrun_module('quorate_torchrun', run_name='__main__')\n"


def install() -> None:
    """Install the hook, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@final
class _Finder:
    """Finds the two modules as Python does, with a loader that changes them once they are loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name not in _NAMES or not os.environ.get(MARK):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


@final
class _Loader(SourceFileLoader):
    """Runs the module's own code, then puts quorate's functions in its names."""

    def exec_module(self, module: ModuleType) -> None:
        code = super().get_code(module.__name__)
        assert code is not None
        exec(code, module.__dict__)
        for name in _NAMES[module.__name__]:
            setattr(module, name, _choose(name, getattr(module, name)))

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code that ``runpy`` runs as the main program."""
        if fullname == _RUN:
            return compile(_MAIN, self.path, "exec")
        return super().get_code(fullname)


def _choose(name: str, original: Any) -> Any:
    """Return a function that calls quorate's while the mark is set, else torch's: a worker may be a forked copy."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not os.environ.get(MARK):
            return original(*args, **kwargs)
        import quorate_torchrun  # on first use: most processes of the command never launch anything

        return getattr(quorate_torchrun, name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = original.__doc__
    call.__wrapped__ = original  # type: ignore[attr-defined] # what functools.wraps sets
    return call
