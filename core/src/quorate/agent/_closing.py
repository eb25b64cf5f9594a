"""Closes the parts of an agent, whatever other code in its process has closed before.

What does not live here: the parts, and their order (``_runner``).
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterable

from .._isolation import described
from ..errors import PluginError


def close_in_turn(parts: Iterable[Callable[[], object]], warn: Callable[[str], None]) -> None:
    """Call each function, one after another; what cannot be closed is reported, and keeps no other part open.

    Raises:
        BaseException: the first exception of another kind, once all functions were called.
    """
    unforeseen: BaseException | None = None
    for close in parts:
        try:
            close()
        except PluginError as error:
            warn(str(error))
        except OSError as error:
            warn(f"a part of the agent could not be closed: {described(error)}")
        except BaseException as error:
            if unforeseen is None:
                unforeseen = error
    if unforeseen is not None:
        raise unforeseen


def raise_if_closed_by_others(error: OSError, epoll: select.epoll) -> None:
    """Raise PluginError where ``error`` comes from a descriptor of this process that other code has closed.

    Once the agent's own ``epoll`` is closed, another file may be opened under its number.  Calls then fail with errors
    other than EBADF, so ``epoll`` is tried.
    """
    if error.errno == errno.EBADF or not _is_open(epoll):
        raise PluginError(
            "a descriptor of this agent was closed by other code in its process, such as a plugin; "
            "only the code that has opened a file or a socket may close it"
        ) from error


def _is_open(epoll: select.epoll) -> bool:
    try:
        epoll.poll(0)
    except OSError:
        return False
    return True
