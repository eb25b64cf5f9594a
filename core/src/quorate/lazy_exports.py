"""Names that a package offers and imports only when they are used, without the price of :mod:`importlib`.

For packages on the way to a job's first worker; plugins that are on it may use this, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        # With names to take from it, __import__ gives the module itself, as import_module would: importlib is a package
        # that imports warnings, a third of a millisecond.
        value = namespace[name] = getattr(__import__(f"{package}.{home}", fromlist=(name,)), name)
        return value

    return get
