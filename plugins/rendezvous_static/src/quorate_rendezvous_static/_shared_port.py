"""A second port of a store's server, which it lends to the workers while they run.

Where a network lets one port through, the nodes meet on it, and then the first worker serves the workers' own store
there.  Connections that nodes have made by then stay.  What does not live here: the server (``_server``), which serves
them, and how a node chooses a port (``_target``).
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from typing import final

from quorate.net import close_in_children, listen

from ._server import TcpStoreServer

#: Between two attempts to listen (workers that are being stopped may still have the port), or to accept.
_RETRY_SECONDS = 0.1


@final
class SharedPort:
    """Listens on ``port`` of the addresses of ``server``, for it, whenever the port is not lent.

    Where that fails it tries again, and says nothing: the port above it is the one that counts.
    """

    def __init__(self, server: TcpStoreServer, port: int) -> None:
        self._server, self._port = server, port
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._listeners: list[socket.socket] = []
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        close_in_children(self)
        self.take_back()

    def take_back(self) -> None:
        """Listen again.  Does not wait."""
        with self._changing:
            if self._thread is None and self._wake_in.fileno() >= 0:
                self._thread = threading.Thread(target=self._run, name=f"quorate-port-{self._port}", daemon=True)
                self._thread.start()

    def lend(self) -> None:
        """Listen no more; the port is free for others when this returns."""
        with self._changing:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._wake_in.send(b"x")
                thread.join()

    def close(self) -> None:
        """As :meth:`lend`, for good.  May be called twice."""
        self.lend()
        with self._changing:
            self._wake_in.close()
            self._wake_out.close()

    def close_after_fork(self) -> None:
        """Close this process's copies; for a forked child."""
        for sock in [*self._listeners, self._wake_in, self._wake_out]:
            sock.close()

    # --- on the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            with suppress(BlockingIOError):
                self._wake_out.recv(64)
            listeners, self._listeners = self._listeners, []
            for each in listeners:
                each.close()

    def _serve(self) -> None:
        """Listen until :meth:`lend` or :meth:`close`.  Waiting takes no descriptor, of which none may be left."""
        end, everything = select.poll(), select.poll()
        end.register(self._wake_out, select.POLLIN)
        while not self._is_listening():
            if end.poll(1000 * _RETRY_SECONDS):
                return
        for sock in (self._wake_out, *self._listeners):
            everything.register(sock, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in everything.poll()}
            if self._wake_out.fileno() in ready:
                return
            for listener in self._listeners:
                if listener.fileno() in ready and not self._accept(listener) and end.poll(1000 * _RETRY_SECONDS):
                    return

    def _is_listening(self) -> bool:
        try:
            self._listeners = listen(address.with_port(self._port) for address in self._server.bound)
        except OSError:
            return False
        return True

    def _accept(self, listener: socket.socket) -> bool:
        """Hand a connection to the server; return false where it stays in the queue, for want of descriptors."""
        try:
            self._server.take(listener.accept()[0])
        except (BlockingIOError, ConnectionError):
            pass  # it has gone before it was accepted
        except OSError:
            return False
        return True
