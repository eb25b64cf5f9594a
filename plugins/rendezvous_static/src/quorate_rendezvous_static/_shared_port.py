"""A second port of a store's server, which it lends to the workers while they run.

Where a network lets one port through, the nodes meet on it, and then the first worker serves the workers' own store
there.  Connections that nodes have made by then stay.  What does not live here: the server (``_server``), which serves
them, and how a node chooses a port (``_target``).
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import final

from quorate.net import bind_addresses, close_in_children, listen

from ._server import TcpStoreServer

__all__ = ["SharedPort"]

#: Between two attempts to listen: workers that are being stopped may still have the port.
_RETRY_SECONDS = 0.1


@final
class SharedPort:
    """Listens on ``port`` of ``host`` for ``server``, whenever it is not lent.

    Who cannot listen there tries again, and says nothing: the port above it is the one that counts.
    """

    def __init__(self, server: TcpStoreServer, host: str, port: int, resolve_timeout: float) -> None:
        self._server, self._host, self._port, self._resolve_timeout = server, host, port, resolve_timeout
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._listeners: list[socket.socket] = []
        self._wake_out, self._wake_in = socket.socketpair()
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
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_out, selectors.EVENT_READ)
            try:
                while not self._is_listening(selector):
                    if selector.select(_RETRY_SECONDS):
                        return
                while True:
                    ready = [key.fileobj for key, _ in selector.select()]
                    if self._wake_out in ready:
                        return
                    for listener in ready:
                        assert isinstance(listener, socket.socket)
                        with suppress(OSError):  # it has gone before it was accepted, or there are no descriptors
                            self._server.take(listener.accept()[0])
            finally:
                with suppress(BlockingIOError):
                    self._wake_out.setblocking(False)
                    self._wake_out.recv(64)
                listeners, self._listeners = self._listeners, []
                for each in listeners:
                    each.close()

    def _is_listening(self, selector: selectors.BaseSelector) -> bool:
        try:
            self._listeners = listen(bind_addresses(self._host, self._port, self._resolve_timeout))
        except OSError:
            return False
        for each in self._listeners:
            selector.register(each, selectors.EVENT_READ)
        return True
