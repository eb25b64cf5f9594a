"""What annotations need of :mod:`typing`, without its import, which takes half as long as starting Python.

For modules on the way to a job's first worker; plugins that are on it may use this, too.  Type checkers see
:mod:`typing` itself.  While a program runs, ``Any``, ``NoReturn`` and type variables are things that no annotation ever
looks at, ``final`` and ``overload`` do nothing, and a ``Protocol`` is a plain class: nothing to ask ``isinstance`` of.
Any other name is fetched from :mod:`typing`, at its usual price.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import IO as IO
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TypeVar as TypeVar
    from typing import cast as cast
    from typing import final as final
    from typing import overload as overload
else:

    class Protocol:
        """The base of an interface."""

    Any = NoReturn = ClassVar = IO = object

    def final(decorated):
        return decorated

    overload = final

    def TypeVar(name, *constraints, bound=None):  # noqa: N802 - it stands for a class
        return name

    def cast(kind, value):
        return value

    def __getattr__(name):
        if name.startswith("_"):
            raise AttributeError(name)  # the import system looks for __path__ in every module
        import typing

        return getattr(typing, name)
