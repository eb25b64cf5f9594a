"""Whether the job's etcd has ended, for a node that is left over: one that was away, or came back, as the job ended.

Its members end with the agents of the job.  Their machines then refuse connections, which a machine that is cut off
does not do.  A member whose process has died refuses them, too, until its agent has started it again; so a node waits
for longer than that.

What does not live here: the end that this machine's own member may know of (:mod:`.store`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import final

from quorate.clock import monotonic
from quorate.errors import StoreLostError
from quorate.net import Endpoint

from .._dial import dial

_ANSWER_SECONDS = 0.5
#: So many looks in a row must find it: this process may have been suspended between two.
_FEWEST_LOOKS = 3


@final
class Ending:
    """Looks whether ``others`` refuse connections.  May be used by several threads.

    Arguments:
        others: where the other members serve clients; none: nobody else's end can be seen.
        seconds: for how long all of them must have refused.
    """

    def __init__(self, others: Sequence[Endpoint], seconds: float) -> None:
        self._others, self._seconds = tuple(others), seconds
        self._lock = threading.Lock()
        self._since, self._looks = 0.0, 0

    def check(self) -> None:
        """Look; call this whenever the store does not answer.

        Raises:
            StoreLostError: all others have refused for long enough.
        """
        with self._lock:
            if not self._has_come():
                return
        where = ", ".join(map(str, self._others))
        raise StoreLostError(
            f"the other members of the job's etcd have ended: for {self._seconds:g} s nothing has listened at {where}, "
            "and these machines answer. The job is over; how it ended is not known on this node. Look at the others"
        )

    def _has_come(self) -> bool:
        if not self._others or not all(map(_refuses, self._others)):
            self._looks = 0
            return False
        now = monotonic()
        if self._looks == 0:
            self._since = now
        self._looks += 1
        return now - self._since >= self._seconds and self._looks >= _FEWEST_LOOKS


def _refuses(endpoint: Endpoint) -> bool:
    try:
        dial(endpoint, monotonic() + _ANSWER_SECONDS, lambda sock: None, lambda sock: sock.close()).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # no answer, no route, or no such name: it may be cut off
    return False
