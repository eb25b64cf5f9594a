"""The settings of the ``c10d`` backend, validated without any I/O.

What does not live here: resolving or reaching the endpoint (:mod:`._endpoint`).
"""

from __future__ import annotations

from typing import NamedTuple, final

from quorate.errors import UsageError
from quorate.rendezvous import RendezvousParameters

__all__ = ["DEFAULT_PORT", "Settings", "format_endpoint", "parse_endpoint"]

#: The port of an endpoint that names none; the same as TorchElastic's.
DEFAULT_PORT = 29400


@final
class Settings(NamedTuple):
    """What the backend needs to know to open the store.

    ``is_host`` is ``None`` where the endpoint decides: whoever owns its address and can bind its port is the host.
    Port 0 means any free port.  All time-outs are in seconds.  ``linger_seconds`` is 0 because the core has the
    members say farewell before it closes the store; who uses the store without the core may want some.  Settings
    that are not listed here belong to others (the core's time-outs, TorchElastic's ``store_type``) and are left alone.
    """

    host: str
    port: int
    run_id: str
    is_host: bool | None
    connect_timeout_seconds: float
    operation_timeout_seconds: float
    linger_seconds: float

    @classmethod
    def from_parameters(cls, parameters: RendezvousParameters) -> Settings:
        """Read ``parameters``.

        Raises:
            UsageError: an endpoint or setting that cannot be used; the message names it and the remedy.
        """
        host, port = parse_endpoint(parameters.endpoint)
        is_host = parameters.get_as_bool("is_host")
        if port == 0 and is_host is None and parameters.max_nodes == 1:
            is_host = True
        if port == 0 and not is_host:
            raise UsageError(
                f"the rendezvous endpoint {parameters.endpoint!r} has port 0, which other nodes cannot find; "
                f"give all nodes one port, such as {format_endpoint(host, DEFAULT_PORT)}"
            )
        operation_timeout = parameters.get_as_float("operation_timeout", 5.0)
        if operation_timeout == 0.0:
            raise UsageError("the rendezvous setting operation_timeout is 0; give it some seconds")
        return cls(
            host=host,
            port=port,
            run_id=parameters.run_id,
            is_host=is_host,
            connect_timeout_seconds=parameters.get_as_float("connect_timeout", 60.0),
            operation_timeout_seconds=operation_timeout,
            linger_seconds=parameters.get_as_float("linger_seconds", 0.0),
        )


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Split ``host:port``, ``host``, ``[v6]:port`` or a bare IPv6 address into host and port.

    Raises:
        UsageError: it is empty or malformed.
    """
    text = endpoint.strip()
    if not text:
        raise UsageError(
            "the c10d rendezvous has no endpoint; set --rdzv-endpoint=HOST:PORT, the same on all nodes, where HOST is "
            "an address of the node that is to host the store"
        )
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        well_formed = bool(bracket) and ":" in host and (not rest or rest.startswith(":"))
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        # An unbracketed IPv6 address cannot carry a port: whether its last group is one is anybody's guess.
        host, port_text = text, None
        well_formed = all(character in "0123456789abcdefABCDEF:.%" for character in host.partition("%")[0])
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
        well_formed = bool(host)
    if not well_formed or any(character.isspace() or character in "/,@" for character in host):
        raise _malformed(endpoint, "it is not HOST:PORT")
    if port_text is None:
        return host, DEFAULT_PORT
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise _malformed(endpoint, f"the port {port_text!r} is not a number from 0 to 65535")
    return host, int(port_text)


def _malformed(endpoint: str, problem: str) -> UsageError:
    return UsageError(
        f"the rendezvous endpoint {endpoint!r} cannot be used: {problem}. Write HOST:PORT, HOST or [IPV6]:PORT"
    )


def format_endpoint(host: str, port: int) -> str:
    """Return ``host:port``, with brackets where the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
