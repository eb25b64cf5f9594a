"""The settings of the ``c10d`` backend, validated without any I/O.

What does not live here: resolving or reaching the endpoint (:mod:`._endpoint`).
"""

from __future__ import annotations

from typing import final

from attrs import frozen

from quorate.errors import UsageError
from quorate.job_token import JobToken, job_token_of
from quorate.net import format_endpoint, parse_endpoint
from quorate.rendezvous import RendezvousParameters

#: The port of an endpoint that names none; the same as TorchElastic's.
DEFAULT_PORT = 29400
#: Longer ones are cut to this, about 11 days: the system's calls take no more than 2**31 milliseconds.
LONGEST_TIMEOUT_SECONDS = 1e6


@final
@frozen
class Settings:
    """What the backend needs to know to open the store.

    ``is_host`` is ``None`` where the endpoint decides: the first node that owns its address and binds its port is the
    host.  Port 0 means any free port.  All timeouts are in seconds.  ``linger_timeout_seconds`` is 0 by default because
    the core, with the same setting, has the members report that they leave before it closes the store; a program that
    uses the store without the core may want some.  Settings that are not listed here belong to others (the core's
    timeouts, TorchElastic's ``store_type``) and are left alone.
    """

    host: str
    port: int
    run_id: str
    is_host: bool | None
    connect_timeout_seconds: float
    operation_timeout_seconds: float
    linger_timeout_seconds: float
    token: JobToken | None = None

    @property
    def endpoint(self) -> str:
        """The endpoint as people write it."""
        return format_endpoint(self.host, self.port)

    @classmethod
    def from_parameters(cls, parameters: RendezvousParameters) -> Settings:
        """Read ``parameters``.

        Raises:
            UsageError: an endpoint or setting that cannot be used; the message names it and the remedy.
        """
        endpoint = parse_endpoint(parameters.endpoint, DEFAULT_PORT, lowest_port=0, bare_ipv6=True)
        is_host = parameters.get_as_bool("is_host")
        if endpoint.port == 0 and is_host is None and parameters.max_nodes == 1:
            is_host = True
        if endpoint.port == 0 and not is_host:
            raise UsageError(
                f"the rendezvous endpoint {parameters.endpoint!r} has port 0, which other nodes cannot find; "
                f"give all nodes one port, such as {format_endpoint(endpoint.host, DEFAULT_PORT)}"
            )
        operation_timeout = parameters.get_as_float("operation_timeout", 5.0)
        if operation_timeout == 0.0:
            raise UsageError("the rendezvous setting operation_timeout is 0; give it some seconds")
        return cls(
            host=endpoint.host,
            port=endpoint.port,
            run_id=parameters.run_id,
            is_host=is_host,
            connect_timeout_seconds=min(parameters.get_as_float("connect_timeout", 60.0), LONGEST_TIMEOUT_SECONDS),
            operation_timeout_seconds=min(operation_timeout, LONGEST_TIMEOUT_SECONDS),
            linger_timeout_seconds=min(parameters.get_as_float("linger_timeout", 0.0), LONGEST_TIMEOUT_SECONDS),
            token=job_token_of(parameters.config),
        )


def check_parameters(parameters: RendezvousParameters) -> None:
    """Refuse settings that cannot be used.  No I/O.  Raises UsageError."""
    Settings.from_parameters(parameters)
