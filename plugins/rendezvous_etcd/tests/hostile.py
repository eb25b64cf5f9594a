"""Members that stand before a real etcd and change what it answers, one for each API."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded
from h2.exceptions import H2Error

from quorate import clock
from quorate.net import Endpoint, parse_endpoint, shut_down
from quorate_rendezvous_etcd._v3.http2 import CallError
from quorate_rendezvous_etcd._v3.transport import Channel

from .etcd_harness import DEADLINE_SECONDS

__all__ = ["HostileMember", "HostileV2Member"]


@final
class HostileMember:
    """Forwards API v3's calls to a real member.

    ``twist(method, answer)`` returns what is answered in the place of ``answer``, both serialized; a text is a gRPC
    status instead.  A watch gets one answer.
    """

    def __init__(self, endpoint: str) -> None:
        self.twist: Callable[[str, bytes], bytes | str] = lambda method, answer: answer
        self.calls: list[str] = []
        self._real = Channel(parse_endpoint(endpoint), None)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = str(Endpoint("127.0.0.1", self._listener.getsockname()[1]))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        http = H2Connection(H2Configuration(client_side=False))
        paths: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        with sock:
            try:
                http.initiate_connection()
                sock.sendall(http.data_to_send())
                while data := sock.recv(65536):
                    for event in http.receive_data(data):
                        if isinstance(event, ConnectionTerminated):
                            return
                        if isinstance(event, RequestReceived):
                            headers = {_text(name): _text(value) for name, value in event.headers}
                            paths[event.stream_id], bodies[event.stream_id] = headers[":path"], b""
                        if isinstance(event, DataReceived):
                            http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                            bodies[event.stream_id] += event.data
                        if isinstance(event, StreamEnded):
                            stream = event.stream_id
                            self._answer(http, stream, paths.pop(stream), bodies.pop(stream)[5:], sock)
                    sock.sendall(http.data_to_send())
            except (OSError, H2Error):
                pass  # the client has gone

    def _answer(self, http: H2Connection, stream: int, path: str, request: bytes, sock: socket.socket) -> None:
        method = path.rpartition("/")[2]
        self.calls.append(method)
        status, answer = "0", b""
        try:
            if method != "Watch":
                answer = self._real.call(path, request, DEADLINE_SECONDS)
        except CallError as error:
            status = {"NOT_FOUND": "5"}.get(error.code, "14")
        twisted = self.twist(method, answer)
        http.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        if isinstance(twisted, str):
            status = twisted
        elif status == "0":
            body = b"\0" + len(twisted).to_bytes(4, "big") + twisted
            for start in range(0, len(body), 16_384):
                # The client's window is as large as any answer of these tests.
                http.send_data(stream, body[start : start + 16_384])
                sock.sendall(http.data_to_send())
        if method != "Watch":
            http.send_headers(stream, [("grpc-status", status)], end_stream=True)

    def close(self) -> None:
        self._real.close()
        shut_down(self._listener)
        self._listener.close()
        for sock in self._sockets:
            shut_down(sock)
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@final
class HostileV2Member:
    """Forwards API v2's requests to a real member.

    ``twist(path, status, body)`` returns the status and the body that are answered in the place of the real ones,
    ``fields`` are added to the header, and ``pause_seconds`` follow each byte.
    """

    def __init__(self, endpoint: str) -> None:
        self.twist: Callable[[str, int, bytes], tuple[int, bytes]] = lambda path, status, body: (status, body)
        self.fields: dict[str, str] = {}
        self.pause_seconds = 0.0
        member = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                data = self.rfile.read(length) if length else None
                request = urllib.request.Request(f"http://{endpoint}{self.path}", data, method=self.command)
                try:
                    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as real:
                        status, headers, body = real.status, real.headers, real.read()
                except urllib.error.HTTPError as error:
                    with error:
                        status, headers, body = error.code, error.headers, error.read()
                status, body = member.twist(self.path, status, body)
                self.send_response(status)
                for name in ("X-Etcd-Index", "X-Etcd-Cluster-Id", "Content-Type"):
                    if headers.get(name):
                        self.send_header(name, headers[name])
                for name, value in {**member.fields, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # the client has gone
                    if not member.pause_seconds:
                        self.wfile.write(body)
                    for byte in body if member.pause_seconds else b"":
                        self.wfile.write(bytes([byte]))
                        clock.sleep(member.pause_seconds)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names are the base class's

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_SECONDS)
