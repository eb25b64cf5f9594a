"""Public names of a package that are imported when they are first used, so that importing the package stays cheap.

For packages that a worker or every launch imports and whose names bring torch, gRPC or much code of quorate along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(namespace: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return what a package's ``__getattr__`` should be.

    Arguments:
        namespace: the package's ``globals()``; a name that was asked for once is kept there.
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
