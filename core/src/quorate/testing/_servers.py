"""Servers for the tests of a backend: a server program, a proxy that can be cut, free ports.

What does not live here: the laws that make use of it (``_fault_laws``).
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from random import SystemRandom
from types import TracebackType
from typing import TypeVar, final

from ..clock import monotonic, sleep
from ..errors import UsageError
from ..net import parse_endpoint
from ..proc import descendants_of, open_pidfd, state_of
from ..text import whole_number

_Proxy = TypeVar("_Proxy", bound="CuttableProxy")
_CHUNK = 1 << 16
#: How long a killed process may take to end.
_END_SECONDS = 10.0
_START_SECONDS = 30.0
_OUTGOING_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"
#: Below the default port of a rendezvous, 29400.
_FIRST_PORT, _LAST_PORT = 20_000, 29_000
_PORT_TRIES = 100
#: The last ones.
_given: deque[int] = deque(maxlen=200)
#: States in which a process does nothing: stopped, traced, a zombie, gone.
_STOPPED = frozenset({"T", "t", "Z", "X", ""})


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no server listens, and which the system gives to no connection.

    A connection may take a port of the range of outgoing connections before it is used, so a lower one is chosen.
    Where none of those can be had, the system chooses.  Nobody holds the port until a server listens there, so a
    process does not get one that it was given a short time ago, and processes of pytest-xdist have ports of their own.

    Raises:
        OSError: no port can be used.
    """
    number = whole_number(os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")) or 0
    processes = whole_number(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")) or 1
    with open(_OUTGOING_PORTS) as file:
        below = range(_FIRST_PORT + number % processes, min(int(file.read().split()[0]), _LAST_PORT), processes)
    choose = SystemRandom()  # else processes with the same seed would choose the same port
    for _ in range(_PORT_TRIES if below else 0):
        with socket.socket() as sock, suppress(OSError):
            port = choose.choice(below)
            if port not in _given:
                sock.bind(("127.0.0.1", port))
                _given.append(port)
                return port
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@final
class FreshPorts:
    """The ``server`` of a backend whose store a node hosts: each job gets a port of its own.

    Arguments:
        address: an address of this host.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address

    @property
    def endpoint(self) -> str:
        """A new endpoint each time."""
        return f"{self._address}:{free_port()}"


class CuttableProxy:
    """Forwards TCP connections to ``target``; while it is cut, no data passes, as if every packet were lost.

    Connections stay open while it is cut and continue afterwards.  Also a context manager; made to be subclassed, to
    add what else the server behind it can do.

    Arguments:
        target: ``host:port`` of the real server.
    """

    def __init__(self, target: str) -> None:
        self._target = parse_endpoint(target)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._servers: set[socket.socket] = set()  # those of the peers that lead to the server
        self._is_cut = self._is_closed = False
        self._changed = threading.Lock()
        self._losing: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._run, name="cuttable proxy", daemon=True)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where clients connect to."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def partition(self) -> Iterator[None]:
        """Cut the server off while the context is open."""
        self._set_cut(True)
        try:
            yield
        finally:
            self._set_cut(False)

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        """While the context is open, the server gets what clients send, and each connection ends with its answer lost.

        One answer is lost for each connection that was open at the beginning; newer connections work.
        """
        with self._changed:
            self._losing = set(self._peers)
        try:
            yield
        finally:
            with self._changed:
                self._losing = set()

    def __enter__(self: _Proxy) -> _Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close everything."""
        self._is_closed = True
        self._wake.send(b"x")
        self._thread.join(_START_SECONDS)
        for sock in (self._listener, self._wake, self._woken, *self._peers):
            sock.close()
        self._selector.close()

    def _set_cut(self, value: bool) -> None:
        self._is_cut = value
        self._wake.send(b"x")

    def _run(self) -> None:
        while not self._is_closed:
            # While it is cut, only the wake-up is read: what clients send stays in their sockets.
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._woken:
                    sock.recv(_CHUNK)
                    self._listen_to_clients(not self._is_cut)
                elif not self._is_cut and sock is self._listener:
                    self._accept()
                elif not self._is_cut and sock in self._peers:
                    self._forward(sock)

    def _listen_to_clients(self, listen: bool) -> None:
        for sock in (self._listener, *self._peers):
            is_registered = sock in self._selector.get_map()
            if listen and not is_registered:
                self._selector.register(sock, selectors.EVENT_READ)
            elif not listen and is_registered:
                self._selector.unregister(sock)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection((self._target.host, self._target.port), timeout=5.0)
        except OSError:
            client.close()  # the server is down: the client's connection ends at once
            return
        self._servers.add(server)
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(5.0)
            with self._changed:
                self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _is_lost(self, sock: socket.socket) -> bool:
        with self._changed:
            return sock in self._losing and sock in self._servers

    def _forward(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_CHUNK)
            if data and not self._is_lost(sock):
                self._peers[sock].sendall(data)
                return
        except OSError:
            pass
        for one in (sock, self._peers[sock]):
            del self._peers[one]
            self._servers.discard(one)
            self._selector.unregister(one)
            one.close()


def _pidfd_of(pid: int) -> int:
    try:
        return open_pidfd(pid)
    except ProcessLookupError:
        return -1


def _stop_tree(root: int) -> list[int]:
    """Stop a process and all its descendants; returns them, parents first."""
    stopped: list[int] = []
    while new := [pid for pid in (root, *descendants_of(root)) if pid not in stopped]:
        for pid in new:  # a process that is stopped starts no further ones
            _signal(pid, signal.SIGSTOP)
            stopped.append(pid)
    deadline = monotonic() + _START_SECONDS
    while any(state_of(pid) not in _STOPPED for pid in stopped) and monotonic() < deadline:
        sleep(0.001)  # before that one may still answer
    return stopped


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.kill(pid, number)


@final
class ServerProcess:
    """A server program on this machine, behind a proxy, so that it can be cut off, stopped and restarted.

    Also a context manager.  ``endpoint`` is the proxy's; restarts do not change it.

    Arguments:
        command: the program and its arguments; it has to listen on ``port`` of 127.0.0.1, in the foreground.
        port: that port, such as :func:`free_port` gives.

    Raises:
        UsageError: the program ends, or does not listen within half a minute.
    """

    def __init__(self, command: Sequence[str], port: int) -> None:
        self._command, self._port = list(command), port
        self._process = self._start()
        self._proxy = CuttableProxy(f"127.0.0.1:{port}")

    @property
    def endpoint(self) -> str:
        """Where clients connect to."""
        return self._proxy.endpoint

    def partition(self) -> AbstractContextManager[None]:
        """Cut the server off while the context is open."""
        return self._proxy.partition()

    def losing_answers(self) -> AbstractContextManager[None]:
        """Lose one answer of each open connection, see :meth:`CuttableProxy.losing_answers`."""
        return self._proxy.losing_answers()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the server (SIGSTOP), with all processes that it has started, while the context is open."""
        stopped = _stop_tree(self._process.pid)
        try:
            yield
        finally:
            for pid in reversed(stopped):
                _signal(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill the server (SIGKILL) and start it again."""
        self._end()
        self._process = self._start()

    def close(self) -> None:
        """End the server."""
        self._end()
        self._proxy.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        tree = _stop_tree(self._process.pid)
        ends = [_pidfd_of(pid) for pid in tree if pid != self._process.pid]
        for pid in reversed(tree):
            _signal(pid, signal.SIGKILL)
        self._process.wait()
        # A descendant is not this process's child: its ports are free only once it has ended.
        for end in ends:
            if end >= 0:
                select.select([end], [], [], _END_SECONDS)
                os.close(end)

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise UsageError(f"the server {self._command[0]!r} cannot be started: {error.strerror}") from None
        deadline = monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
                return process
            except OSError:
                pass
            if process.poll() is not None or monotonic() > deadline:
                process.kill()
                process.wait()
                raise UsageError(f"{' '.join(self._command)} does not listen on port {self._port}")
            sleep(0.02)
