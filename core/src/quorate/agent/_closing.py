"""Closes the parts of an agent, whatever other code in its process has closed before.

What does not live here: the parts, and their order (``_runner``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from .._isolation import described
from ..errors import PluginError


def close_in_turn(parts: Iterable[Callable[[], object]], warn: Callable[[str], None]) -> None:
    """Call each function, one after another; what cannot be closed is reported, and keeps no other part open.

    Raises:
        BaseException: what a function raised that nothing foresees, once all of them were called.
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


def raise_if_closed_by_others(error: OSError, epoll: int) -> None:
    """Raise PluginError where a descriptor of this process is not open any more, as ``error`` or ``epoll`` shows.

    The number of the agent's epoll object may be that of another file by now, of which Linux says something else.
    """
    if error.errno == errno.EBADF or not _is_epoll(epoll):
        raise PluginError(
            "a descriptor of this agent was closed by other code in its process, such as a plugin; "
            "only the code that has opened a file or a socket may close it"
        ) from error


def _is_epoll(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventpoll]"
    except OSError:
        return False
