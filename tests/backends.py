"""The rendezvous backends that the behaviours are proved on: one table, and how to get a fresh endpoint for each.

What does not live here: the behaviours themselves; a test that takes the fixture ``backend`` runs once per row.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from quorate_rendezvous_etcd import EtcdServer

__all__ = ["BACKENDS", "Backend", "loopback_port"]


@dataclass(frozen=True)
class Backend:
    """One row: ``fresh_endpoint()`` gives an endpoint that no other test uses, for as long as the context is open.

    ``dies_with_host`` tells that one of the agents serves the store, so that the job ends with that agent.  ``serve``
    runs what serves it otherwise, for all tests together; it is entered once, before the first endpoint is asked for.
    """

    name: str
    fresh_endpoint: Callable[[], AbstractContextManager[str]]
    dies_with_host: bool
    serve: Callable[[], AbstractContextManager[Any]] = nullcontext


@contextmanager
def loopback_port() -> Iterator[str]:
    """Hold a free port: nobody else is given it, yet a listener that sets the same option can have it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


class _SharedEtcd:
    """One private etcd for all tests: their run ids differ."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._server: EtcdServer | None = None

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Run the server, unless another test has it running already."""
        if self._server is not None:
            yield
            return
        try:
            with EtcdServer(**self._options) as self._server:
                yield
        finally:
            self._server = None

    @contextmanager
    def endpoint(self) -> Iterator[str]:
        assert self._server is not None
        yield self._server.get_endpoint()


_etcd = _SharedEtcd()
_etcd_v2 = _SharedEtcd(enable_v2=True)

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("c10d", loopback_port, dies_with_host=True),
        Backend("tcp", loopback_port, dies_with_host=True),
        Backend("etcd", _etcd.endpoint, dies_with_host=False, serve=_etcd.serve),
        Backend("etcd-v2", _etcd_v2.endpoint, dies_with_host=False, serve=_etcd_v2.serve),
    )
}
