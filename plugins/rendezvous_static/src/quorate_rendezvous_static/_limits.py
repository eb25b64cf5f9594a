"""What the TCP store's server takes from its clients at most, before and after they have identified themselves.

What does not live here: the sizes of frames, keys and values (``_wire``), which clients must know too.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import final

from attrs import frozen

#: Enough for the connections of some 8,000 nodes; workers inherit the limit, and some programs close up to it.
_WANTED_DESCRIPTORS = 65_536


@final
@frozen
class Limits:
    """The bounds of one server.  The oldest or the largest offender pays: its connection is closed, no other.

    Arguments:
        hello_timeout_seconds: how long a connection may live without a valid hello.
        transfer_timeout_seconds: how long one request may take to arrive, and one answer to be read.
        store_bytes: keys and values that the store holds, with :attr:`key_overhead_bytes` for each key.
        buffered_bytes: requests that have arrived in part, and answers that are not read yet, of all connections.
        key_overhead_bytes: the price of a key beside its bytes.
        descriptor_share: the server takes at most one of so many descriptors that the process may open.
        last_words_bytes: keys and values that the server keeps for the event that a client is lost.
        longest_return_seconds: how long such a client can ask to be waited for.
    """

    hello_timeout_seconds: float = 5.0
    transfer_timeout_seconds: float = 30.0
    store_bytes: int = 256 << 20
    buffered_bytes: int = 64 << 20
    key_overhead_bytes: int = 200
    descriptor_share: int = 4
    last_words_bytes: int = 64 << 10
    longest_return_seconds: float = 60.0

    def most_descriptors(self) -> int:
        """Return how many descriptors the server may hold, by this process's present ``RLIMIT_NOFILE``."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (1 << 20 if soft == resource.RLIM_INFINITY else soft) // self.descriptor_share


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit on open files as far as its hard limit permits, for the nodes to come.

    Many systems give 1,024 and permit far more; a quarter of that would be enough for 125 nodes only.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a node too many is refused with the remedy
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
