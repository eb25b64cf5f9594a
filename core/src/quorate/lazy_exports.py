"""Public names of a package that are imported when they are first used, so that importing the package stays cheap.

For packages that every worker or launch imports while few of their names are used there, or whose names import torch or
gRPC.  Elsewhere names are imported as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_exports", "lazy_function"]


def lazy_exports(namespace: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package (PEP 562).

    Arguments:
        namespace: the package's ``globals()``; a name that was used once is kept there.
        homes: name -> the package's module that defines it.
    """
    package: str = namespace["__name__"]

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(f"{package}.{home}"), name)
        return value

    return get


def lazy_function(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports ``module`` at its first call and calls what is named ``name`` there.

    For plugins that offer several backends, of which a job uses one.
    """

    def call(*arguments: Any, **keywords: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **keywords)

    call.__name__ = call.__qualname__ = name
    return call
