"""Where the workers of a round meet, as handlers of torch's interface find it out."""

from __future__ import annotations

import socket
from typing import Any, ClassVar, final

from attrs import frozen

from quorate.net import host_name

__all__ = ["RendezvousStoreInfo"]


@final
@frozen
class RendezvousStoreInfo:
    """The address and port of the workers' store."""

    MASTER_ADDR_KEY: ClassVar[str] = "MASTER_ADDR"
    MASTER_PORT_KEY: ClassVar[str] = "MASTER_PORT"

    master_addr: str
    master_port: int

    @staticmethod
    def build(rank: int, store: Any, local_addr: str | None, server_port: int | None = None) -> RendezvousStoreInfo:
        """Return what all nodes of a round agree on: rank 0 writes it into ``store``, and the others read it there.

        Arguments:
            rank: this node's rank.
            store: what has torch's ``set`` and ``get``, which waits for the key.
            local_addr: rank 0's address; its name by default.
            server_port: rank 0's port; a free one by default, which nobody holds.
        """
        cls = RendezvousStoreInfo
        if rank == 0:
            store.set(cls.MASTER_ADDR_KEY, (local_addr or host_name()).encode())
            store.set(cls.MASTER_PORT_KEY, str(server_port or _free_port()).encode())
        return cls(store.get(cls.MASTER_ADDR_KEY).decode(), int(store.get(cls.MASTER_PORT_KEY)))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port
