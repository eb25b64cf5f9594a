"""How the host of the store waits for the other members to leave.

The kernel knows which connections are open, also after a member was killed: no counting keys are needed.
"""

from __future__ import annotations

import select
from collections.abc import Iterable

from quorate.clock import monotonic

from ._connection import accepted_sockets
from ._settings import LONGEST_TIMEOUT_SECONDS


def await_departures(port: int, own_ports: Iterable[int | None], deadline: float) -> bool:
    """Wait until every connection accepted on ``port`` is closed by its peer, but those from ``own_ports``.

    Returns whether all have left by ``deadline`` (monotonic seconds).
    """
    own = set(own_ports)
    members = {}
    for sock in accepted_sockets(port):
        try:
            if sock.getpeername()[1] not in own:
                members[sock.fileno()] = sock
                continue
        except OSError:
            pass  # it has left just now
        sock.close()
    poller = select.poll()
    for descriptor in members:
        poller.register(descriptor, getattr(select, "POLLRDHUP", 0))
    try:
        while members:
            left = deadline - monotonic()
            if left <= 0:
                return False
            for descriptor, _ in poller.poll(min(left, LONGEST_TIMEOUT_SECONDS) * 1000):
                poller.unregister(descriptor)
                members.pop(descriptor).close()
    finally:
        for sock in members.values():
            sock.close()
    return True
