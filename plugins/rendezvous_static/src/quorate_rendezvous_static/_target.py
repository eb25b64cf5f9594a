"""The server that the connections of one store go to.

What does not live here: the connections (``_link``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from attrs import define, field

from quorate.errors import StoreLostError
from quorate.net import Address, format_endpoint

if TYPE_CHECKING:
    import ssl

    from ._tls import Tls  # a type here: the module imports ssl, which few jobs need

_CLIENT_BYTES = 16


@final
@define(eq=False)
class Target:
    """The server that the links of one store connect to.

    ``hosted_by`` names its process, for messages.  ``address`` and ``incarnation`` are those of the server that was
    reached first: a store stays with that one.  ``client`` is what the connections of one store have in common.
    ``key`` is what both ends must prove to have, ``None`` if nothing, ``tls`` how the connections are encrypted.

    ``shared_port`` is a second port of the same server, on which it listens while no workers run.

    Raises:
        UsageError: the files that ``tls`` names cannot be used.
    """

    host: str
    port: int
    run_id: str
    hosted_by: str
    key: bytes | None = None
    tls: Tls | None = None
    shared_port: int | None = None
    client: bytes = field(factory=lambda: os.urandom(_CLIENT_BYTES), init=False)
    context: ssl.SSLContext | None = field(init=False)
    address: Address | None = field(default=None, init=False)
    incarnation: bytes | None = field(default=None, init=False)

    @context.default
    def _make_context(self) -> ssl.SSLContext | None:
        return None if self.tls is None else self.tls.client_context()

    @property
    def endpoint(self) -> str:
        return format_endpoint(self.host, self.port)

    def lost(self, how: str) -> StoreLostError:
        return StoreLostError(
            f"{self.hosted_by} ({self.endpoint}) is gone, and with it the rendezvous store that it held: {how}"
        )

    def is_shared(self, address: Address) -> bool:
        """Return whether ``address`` has the port that the server shares with the workers."""
        return bool(address.sockaddr[1] == self.shared_port)

    @property
    def is_reached_by_shared_port(self) -> bool:
        """Whether the connections are by the shared port, so that none can be made while workers run."""
        return self.address is not None and self.is_shared(self.address)

    def places(self, found: Sequence[Address]) -> list[Address]:
        """Return where to connect to: ``found``, the addresses of the endpoint, then the same by the shared port."""
        return [*found, *(address.with_port(self.shared_port) for address in found if self.shared_port)]

    def places_again(self) -> list[Address]:
        """Return where to connect to the server that was reached before."""
        assert self.address is not None
        if not self.is_shared(self.address):
            return [self.address]
        return [self.address.with_port(self.port), self.address]
