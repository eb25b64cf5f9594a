"""Closes the parts of an agent, whatever other code in its process has closed before.

What does not live here: the parts, and their order (``_runner``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from .._isolation import described
from ..errors import PluginError


def close_in_turn(parts: Iterable[Callable[[], object]], warn: Callable[[str], None]) -> None:
    """Call each function, one after another; what cannot be closed is reported, and keeps no other part open."""
    for close in parts:
        try:
            close()
        except PluginError as error:
            warn(str(error))
        except OSError as error:
            warn(f"a part of the agent could not be closed: {described(error)}")


def raise_if_closed_by_others(error: OSError) -> None:
    """Raise PluginError where ``error`` says that a descriptor of this process is not open any more."""
    if error.errno == errno.EBADF:
        raise PluginError(
            "a descriptor of this agent was closed by other code in its process, such as a plugin; "
            "only the code that has opened a file or a socket may close it"
        ) from error
