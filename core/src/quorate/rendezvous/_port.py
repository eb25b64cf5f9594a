"""``Bootstrap`` holds a round's ``MASTER_PORT``; ``PortReservation``, the default, reserves it for the worker.

The socket is bound and does not listen.  While nodes gather no other process can bind the port, with any options.
(One exception: a port of a given range on which only old connections are left, see :meth:`PortReservation.reserve`.)
:meth:`PortReservation.activate` then sets ``SO_REUSEADDR``: the worker, whose store sets it too, can bind the port
and listen on it, and the system still gives it to no program that asks for any port.  (Binding, closing and hoping is
a race.)
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, final

from .._isolation import call_plugin, checked_answer, described, is_bool, problem_of
from ..errors import QuorateError, RendezvousStateError, UsageError
from ..net import named_endpoints
from ..notices import warn

#: The setting (``--rdzv-conf``) behind ``--master-port-range``.
PORT_RANGE_SETTING = "master_port_range"
_HIGHEST_PORT, _MOST_DIGITS = 65535, 5
#: What no other port mends.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


class Bootstrap(Protocol):
    """Holds the port that becomes ``MASTER_PORT`` if this node is the first of a round.

    One is made per join.  ``reserve`` is called before the port is published, ``activate`` only on the round's first
    node after the seal and before its workers start, ``release`` always, when the round is over.
    """

    @property
    def shares_store(self) -> bool:
        """Whether a store listens on the port after ``activate`` (workers are then all clients of it)."""
        ...

    def reserve(self, address: str, port: int = 0) -> int:
        """Take ``port`` (0: any free one) on ``address`` and hold it; returns the port.

        Raises:
            OSError: it cannot be taken, with ``EADDRINUSE`` where somebody else has it.
        """
        ...

    def activate(self) -> None:
        """This node is the round's first: make the port usable by its workers."""
        ...

    def release(self) -> None:
        """Give the port back.  May be called twice."""
        ...


def make_bootstrap(backend: str, make: Callable[[], Bootstrap] | None) -> Bootstrap:
    """Return what holds the port: a backend's own, with its answers checked, or the default.

    Raises:
        PluginError: the backend made none; names it.
    """
    if make is None:
        return PortReservation()
    return _GuardedBootstrap(f"rendezvous backend {backend!r}: bootstrap", make)


@final
class _GuardedBootstrap:
    """A backend's own :class:`Bootstrap`; raises a PluginError where that breaks its contract."""

    def __init__(self, what: str, make: Callable[[], Bootstrap]) -> None:
        self._what = what
        self._bootstrap = checked_answer(what, _is_bootstrap, "a Bootstrap", make)

    @property
    def shares_store(self) -> bool:
        return checked_answer(f"{self._what}.shares_store", is_bool, "a bool", lambda: self._bootstrap.shares_store)

    def reserve(self, address: str, port: int = 0) -> int:
        def ask() -> Any:
            try:
                return self._bootstrap.reserve(address, port) if port else self._bootstrap.reserve(address)
            except OSError as error:  # the caller knows what follows
                if type(error).__module__ == OSError.__module__:
                    return error
                number = OSError.__dict__["errno"].__get__(error)  # an attribute of another class may raise
                if type(number) is not int:
                    raise
                return OSError(number, described(error))

        answer = checked_answer(f"{self._what}.reserve()", _is_port_or_error, "a port", ask)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def activate(self) -> None:
        call_plugin(f"{self._what}.activate()", self._bootstrap.activate)

    def release(self) -> None:
        try:
            call_plugin(f"{self._what}.release()", self._bootstrap.release)
        except QuorateError as error:  # the round was none the worse for it
            warn(problem_of(error))


def _is_bootstrap(answer: Any) -> TypeGuard[Bootstrap]:
    return all(map(callable, (answer.reserve, answer.activate, answer.release)))


def _is_port_or_error(answer: Any) -> TypeGuard[int | OSError]:
    return isinstance(answer, OSError) or (type(answer) is int and 1 <= answer <= _HIGHEST_PORT)


@final
class PortReservation:
    """Implements :class:`quorate.rendezvous.Bootstrap` without a store."""

    shares_store = False

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._claim: socket.socket | None = None

    def reserve(self, address: str, port: int = 0) -> int:
        """Reserve a port on all of this host's addresses, so that no other socket can bind it; returns it.

        Connections of a round that has just ended keep a port of a range busy for a minute, and a server may listen on
        it all the same.  Such a port is taken with ``SO_REUSEADDR`` from the start, and a name that only one process
        can have keeps the reservations of other jobs away from it.

        Raises:
            OSError: no port is free, or ``port`` is not.
        """
        self.release()
        try:
            if port:
                self._claim = _claim(port)
            self._socket = self._bind(port)
        except OSError:
            self.release()
            raise
        taken = self._socket.getsockname()[1]
        assert isinstance(taken, int)
        return taken

    @staticmethod
    def _bind(port: int) -> socket.socket:
        try:
            return _bind_anywhere(port)
        except OSError as error:
            if not port or error.errno != errno.EADDRINUSE:
                raise
        return _bind_anywhere(port, reuse=True)

    def activate(self) -> None:
        """Let the worker bind the port, which it does itself.  Nothing is done without a reserved port."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def release(self) -> None:
        """Give the port back."""
        for sock in (self._socket, self._claim):
            if sock is not None:
                sock.close()
        self._socket = self._claim = None


def _claim(port: int) -> socket.socket:
    """Return a socket with a name for ``port`` that, as the port itself, one process in a network namespace can have.

    Raises:
        OSError: another reservation has it (``EADDRINUSE``).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0quorate-master-port-{port}")
    except OSError:
        sock.close()
        raise
    return sock


def _bind_anywhere(port: int, *, reuse: bool = False) -> socket.socket:
    if socket.has_ipv6:
        try:
            return _bind(socket.AF_INET6, "::", port, reuse)
        except OSError as error:
            if port and error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise
    return _bind(socket.AF_INET, "", port, reuse)


def _bind(family: int, address: str, port: int, reuse: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


# --- a range of ports -----------------------------------------------------------------------------------------------


def port_range(value: Any) -> range:
    """Return the ports that ``LOW:HIGH`` names, both included; a single port is a range of one.

    Raises:
        UsageError: it is not such a range.
    """
    low, colon, high = str(value).strip().partition(":")
    words = (low, high if colon else low)
    if all(word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS for word in words):
        first, last = map(int, words)
        if 1 <= first <= last <= _HIGHEST_PORT:
            return range(first, last + 1)
    raise UsageError(
        f"{PORT_RANGE_SETTING} is {value!r}; it must be LOW:HIGH, two ports from 1 to {_HIGHEST_PORT} "
        "of which the first is not above the second, such as 29500:29509 (--master-port-range)"
    )


def reserve_master_port(bootstrap: Bootstrap, address: str, setting: Any, endpoint: str = "") -> int:
    """Have ``bootstrap`` take a port for ``MASTER_PORT``; returns it.

    Arguments:
        address: where it is taken, see :meth:`Bootstrap.reserve`.
        setting: the range ``LOW:HIGH``, whose first free port is taken; ``None``: any port.
        endpoint: where the nodes meet; its port is left to the rendezvous.

    Raises:
        UsageError: the range is not one.
        RendezvousStateError: no port of the range can be taken.
        OSError: no port is free, or this process can open no further socket.
    """
    if setting is None:
        return bootstrap.reserve(address)
    ports, own = port_range(setting), [each.port for each in named_endpoints(endpoint)[:1]]
    problem = ""
    for port in ports:
        if port in own:
            continue
        try:
            return bootstrap.reserve(address, port)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                raise
            problem = error.strerror or str(error)
    first, last = ports[0], ports[-1]
    which = f"the port {first}" if first == last else f"none of the ports {first} to {last}"
    is_what = "is the one of --rdzv-endpoint" if not problem else "cannot be taken" if first == last else "can be taken"
    raise RendezvousStateError(
        f"{which} {is_what} for MASTER_PORT on this machine"
        + (f" (the last: {problem})" if problem else "")
        + "; end what uses them, or give more with --master-port-range=LOW:HIGH"
    )
