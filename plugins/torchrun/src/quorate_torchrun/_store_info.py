"""Where the workers of a round meet, as handlers of torch's interface find it out."""

from __future__ import annotations

import socket
from typing import Any, ClassVar, final

from attrs import frozen

from quorate.net import host_name
from quorate.text import printable, whole_number


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
            server_port: rank 0's port; a free one by default, which no socket holds.

        Raises:
            ValueError: what stands in the store is not an address and a port.
        """
        cls = RendezvousStoreInfo
        if rank == 0:
            store.set(cls.MASTER_ADDR_KEY, (local_addr or host_name()).encode())
            store.set(cls.MASTER_PORT_KEY, str(server_port or _free_port()).encode())
        address, port = (bytes(store.get(key)).decode() for key in (cls.MASTER_ADDR_KEY, cls.MASTER_PORT_KEY))
        number = whole_number(port)
        if number is None or not 0 < number < 65536:
            raise ValueError(f"{printable(port, 80)} is not a port")
        return cls(address, number)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port
