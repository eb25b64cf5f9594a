"""This machine's addresses: which one other machines reach, which interface it is on, and what ``--local-addr`` means.

What does not live here: endpoints and sockets (:mod:`quorate.net`).
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import re
import socket
import struct
from typing import final

from attrs import frozen

from .errors import UsageError
from .net import Address, host_alone, is_literal, is_loopback, resolve, source_towards

__all__ = [
    "InterfaceAddress",
    "interface_addresses",
    "interface_of",
    "interface_towards",
    "local_address",
    "outside_address",
    "problem_with_name",
]

_NOT_IN_A_NAME = re.compile(r"[^\w.-]")
_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40
_MOST_ADDRESSES = 256
#: Addresses of documentation: nothing is sent there, but the system says from which address it would be.
_SOMEWHERE = (
    Address(socket.AF_INET, ("192.0.2.1", 9)),
    Address(socket.AF_INET6, ("2001:db8::1", 9, 0, 0)),
)


@final
@frozen
class InterfaceAddress:
    """One address of this machine, without a scope, and the name of its interface."""

    interface: str
    host: str

    @property
    def is_outside(self) -> bool:
        """Whether other machines may reach it without more than the address: not loopback, not link-local."""
        address = ipaddress.ip_address(self.host)
        return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def interface_addresses() -> list[InterfaceAddress]:
    """Return the addresses of this machine's interfaces, IPv4 first, each in the system's order."""
    return [*_ipv4(), *_ipv6()]


def _ipv4() -> list[InterfaceAddress]:
    buffer = array.array("B", bytes(_IFREQ_BYTES * _MOST_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iL", len(buffer), buffer.buffer_info()[0]))
        except OSError:
            return []
    data = buffer.tobytes()[: struct.unpack("iL", answer)[0]]
    found = []
    for start in range(0, len(data), _IFREQ_BYTES):
        name = data[start : start + 16].split(b"\0", 1)[0].decode(errors="replace")
        # An address with a label, such as eth0:1, is on the interface before the colon.
        found.append(InterfaceAddress(name.partition(":")[0], socket.inet_ntoa(data[start + 20 : start + 24])))
    return found


def _ipv6() -> list[InterfaceAddress]:
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [
        InterfaceAddress(fields[5], socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0])))
        for fields in lines
        if len(fields) == 6
    ]


def outside_address() -> str:
    """Return the address at which other machines most likely reach this one; ``""`` where it has none.

    That of the default route, else the first one that is neither loopback nor link-local.
    """
    for somewhere in _SOMEWHERE:
        source = source_towards(somewhere)
        if source and InterfaceAddress("", source).is_outside:
            return source
    return next((each.host for each in interface_addresses() if each.is_outside), "")


def interface_towards(host: str) -> str:
    """Return the interface over which this machine reaches the address ``host``; ``""`` where that is not known.

    A name, an address of the loopback interface, and one that is not reached from an interface's own address give "".
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host.partition("%")[0]).version == 6 else socket.AF_INET
    except ValueError:
        return ""
    there = Address(family, (host, 9, 0, 0) if family == socket.AF_INET6 else (host, 9))
    return interface_of("" if is_loopback(there) else source_towards(there))


def interface_of(host: str) -> str:
    """Return the interface that has this machine's address ``host``; ``""`` where none has, and for loopback."""
    found = next((each for each in interface_addresses() if each.host == host), None)
    return "" if found is None or ipaddress.ip_address(found.host).is_loopback else found.interface


def local_address(text: str) -> str:
    """Return the address that ``--local-addr`` asks for: itself, or one of an interface or of a network.

    Raises:
        UsageError: the interface has no address, the network has none of this machine, or ``text`` is nothing of these
            and not a name; the message has those that there are.
    """
    text = text.strip()
    if "/" in text:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise UsageError(f"--local-addr={text} is not a network: {error}; write one such as 10.1.0.0/16") from None
        inside = [each for each in interface_addresses() if ipaddress.ip_address(each.host) in network]
        if not inside:
            raise UsageError(f"--local-addr={text}: this machine has no address in that network; it has {_listing()}")
        return inside[0].host
    of_interface = [each for each in interface_addresses() if each.interface == text]
    if not of_interface:
        if any(text == name for _, name in socket.if_nameindex()):
            raise UsageError(f"--local-addr={text}: that interface has no address; this machine has {_listing()}")
        return _host(text)
    return next((each.host for each in of_interface if each.is_outside), of_interface[0].host)


def _host(text: str) -> str:
    """Return the host of a ``--local-addr`` that is neither an interface nor a network."""
    host = host_alone(text)
    if host and not is_literal(host) and not _NOT_IN_A_NAME.search(host):
        return host
    try:
        is_everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # an address of IPv4 with a scope is none, too
        raise UsageError(
            f"--local-addr={text} is not an address, a name, an interface or a network; this machine has {_listing()}"
        ) from None
    if is_everywhere:
        raise UsageError(
            f"--local-addr={text} stands for all addresses of a machine, so that no other node reaches this one by it; "
            f"this machine has {_listing()}"
        )
    return host


def problem_with_name(text: str, timeout_seconds: float) -> str:
    """Return a sentence if ``text``, a ``--local-addr``, is a name that does not resolve here; else ``""``.

    This is not an error, because the other machines may be able to resolve the name.
    """
    if is_literal(text):
        return ""
    try:
        resolve(text, 0, timeout_seconds)
    except OSError as error:
        return (
            f"--local-addr={text} is neither an address nor an interface of this machine, and as a name it does not "
            f"resolve here ({error}); this machine has {_listing()}"
        )
    return ""


def _listing() -> str:
    return ", ".join(f"{each.host} ({each.interface})" for each in interface_addresses()) or "none"
