"""What the tests of ``etcd-v2`` share: opening stores, looking into etcd, losing answers, other members."""

from __future__ import annotations

import ast
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from quorate.rendezvous import RendezvousParameters
from quorate.testing import settles
from quorate_rendezvous_etcd import plugin

from .etcd_harness import DEADLINE_SECONDS

__all__ = ["LossyProxy", "OpenV2", "V2Member", "in_background", "is_waiting", "v2", "v2_tree"]

HERE = Path(__file__).resolve().parent


class OpenV2:
    """Opens stores through the plugin, as the core does."""

    def __init__(self, endpoint: str, run_id: str) -> None:
        self.endpoint, self.run_id = endpoint, run_id
        (self._backend,) = (one for one in plugin.quorate_register_rendezvous() if one.name == "etcd-v2")
        self._stores: list[Any] = []
        #: What these stores had to wait for while they were opened.
        self.waited: list[str] = []

    def __call__(self, run_id: str | None = None, endpoint: str | None = None, **settings: Any) -> Any:
        assert self._backend.open_store is not None
        where, bounds = endpoint or self.endpoint, settings.pop("nodes", (1, 8))
        parameters = RendezvousParameters("etcd-v2", where, run_id or self.run_id, *bounds, **settings)
        parameters.on_waiting = self.waited.append
        self._stores.append(self._backend.open_store(parameters))
        return self._stores[-1]

    def close(self) -> None:
        for store in reversed(self._stores):
            store.close()


def v2(endpoint: str, path: str, method: str = "GET", _auth: str = "", **options: object) -> dict[str, Any]:
    """Ask etcd something; returns its answer, an error's included."""
    query = urlencode(options)
    url = f"http://{endpoint.partition(',')[0]}/v2/{path}"
    body = query.encode() if method == "PUT" else None
    request = urllib.request.Request(url if body is not None or not query else f"{url}?{query}", body, method=method)
    if _auth:
        request.add_header("Authorization", f"Basic {_auth}")
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
    answer: dict[str, Any] = json.loads(text) if text.strip() else {}
    return answer


def v2_tree(endpoint: str, path: str = "") -> dict[str, Any]:
    """Return all values below ``path`` by their paths; empty directories count as ``None``."""
    found: dict[str, Any] = {}

    def visit(node: dict[str, Any]) -> None:
        if not node.get("dir"):
            found[node["key"]] = node["value"]
        elif node.get("nodes"):
            for child in node["nodes"]:
                visit(child)
        elif "key" in node:
            found[node["key"]] = None

    answer = v2(endpoint, f"keys/{path}", recursive="true", quorum="true")
    visit(answer.get("node", {"dir": True}))
    return found


def in_background(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run ``function`` in a thread that ends with it."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


def is_waiting(store: Any) -> bool:
    """Return whether a long poll of ``store`` is under way."""
    return store._wait_client._polling is not None


class LossyProxy:
    """Forwards connections to etcd; of a request that ``loses`` picks, the answer never arrives."""

    def __init__(self, endpoint: str, loses: Callable[[bytes], bool]) -> None:
        host, _, port = endpoint.rpartition(":")
        self._target, self._loses = (host, int(port)), loses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = [self._listener]
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            self._open.append(server)
            is_lost = False
            try:
                while True:
                    for sock in select.select([client, server], [], [])[0]:
                        data = _read_request(client) if sock is client else server.recv(65536)
                        # An answer that gets lost was given: the server has done what it was asked.
                        if not data or (sock is server and is_lost):
                            return
                        (server if sock is client else client).sendall(data)
                        is_lost = self._loses(data) if sock is client else is_lost
            except OSError:
                return  # the other side left, or the test is over

    def lead_to(self, endpoint: str) -> None:
        """Break all connections; new ones go to another server."""
        host, _, port = endpoint.rpartition(":")
        self._target = (host, int(port))
        self._shut(self._open[1:])

    @staticmethod
    def _shut(sockets: list[socket.socket]) -> None:
        for sock in sockets:
            with suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._shut(self._open)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


def _read_request(sock: socket.socket) -> bytes:
    """Return one HTTP request; empty at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


class V2Member:
    """A process that is a member of a job (``v2_member.py``)."""

    def __init__(self, endpoint: str, run_id: str, **settings: object) -> None:
        arguments = [f"{name}={value}" for name, value in settings.items()]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "v2_member.py"), endpoint, run_id, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> V2Member:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # it died before it read what was sent
                pipe.close()

    def send(self, name: str, *arguments: object) -> None:
        """Have it call a method of its store."""
        assert self.process.stdin is not None
        self.process.stdin.write(repr((name, arguments)).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> tuple[str, Any]:
        """Wait for the outcome of what was sent: ``("returned", value)`` or ``(error class, message)``."""
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], DEADLINE_SECONDS)
        assert ready, "the member did not answer in time"
        line = stdout.readline()
        assert line, f"the member ended with {self.process.wait(DEADLINE_SECONDS)}"
        answer: tuple[str, Any] = ast.literal_eval(line.decode())
        return answer

    def call(self, name: str, *arguments: object) -> Any:
        """Call a method of its store; returns the value."""
        self.send(name, *arguments)
        word, value = self.receive()
        assert word == "returned", (word, value)
        return value

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)


def vanishes(endpoint: str, path: str) -> bool:
    """Wait until nothing is left at ``path`` in etcd."""
    return settles(lambda: v2(endpoint, f"keys/{path}", quorum="true").get("errorCode") == 100)
