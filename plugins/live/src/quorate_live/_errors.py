"""The exceptions of live workers, and which of a program's exceptions another worker's end explains.

What does not live here: when a worker waits to learn whether that is so (:mod:`._world`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, final

# As quorate-errors, which need not be installed, classifies what a failed worker has written: a message is about a
# collective and a broken connection.
_COLLECTIVE = re.compile(r"\bgloo\b|nccl|ProcessGroup|TCPStore|\bDist(Network|Backend|Store)Error\b", re.IGNORECASE)
_BROKEN = re.compile(
    r"connection (was )?(closed|reset|refused|aborted|likely been closed)|broken pipe|was aborted|is aborted"
    r"|ncclRemoteError|remote (process|peer|worker|rank)|failed to (recv|send)|client socket has (failed|timed out)"
    r"|collective operation timeout|unexpected(ly)? (eof|closed)|not connected|bad file descriptor"
    r"|interrupted system call|timed out|shut ?down",
    re.IGNORECASE,
)
_MOST_CAUSES = 64


@final
class WorldEnded(BaseException):
    """Raised in the main thread of a live worker to take it out of its world.

    It is not an ``Exception``, so that code which catches those lets it through.  ``with world`` ends it.
    """


@final
class StateLostError(RuntimeError):
    """No worker has a whole state to go on from: what the lost workers had is on no other one.

    Reload a checkpoint: pass ``restore`` to :meth:`World.share`, or let this exception end the worker.
    """


def is_peer_loss(error: BaseException) -> bool:
    """Return whether ``error``, or what it came from, is torch's report that another worker is gone."""
    for each in _causes(error):
        if isinstance(each, Exception):
            text = _text_of(each)
            if _COLLECTIVE.search(text) and _BROKEN.search(text):
                return True
    return False


def is_interruption(error: BaseException) -> bool:
    """Return whether ``error`` is the interruption, or came from it."""
    return any(isinstance(each, WorldEnded) for each in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it came from: its cause, its context, and if it is a group, its members."""
    found: list[Any] = [error]
    for each in found:  # which grows meanwhile
        if isinstance(each, BaseException):
            yield each
            if len(found) < _MOST_CAUSES:
                found += [each.__cause__, each.__context__]
                # Before Python 3.11 the class is a library's.
                if any(kind.__name__ == "BaseExceptionGroup" for kind in type(each).__mro__):
                    found += each.exceptions  # type: ignore[attr-defined]


def _text_of(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the program's own, whose __str__ fails
        return type(error).__name__
