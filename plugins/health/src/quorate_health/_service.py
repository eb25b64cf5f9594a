"""The running health server, from the listening socket to its end.

Imported on the way to the first worker, so the libraries are not: the server's own thread imports them once the first
client has connected.  What does not live here: whether a server is wanted (:mod:`._plugin`).
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from quorate.import_lock import import_lock
from quorate.net import format_endpoint, listen, resolve
from quorate.records import Event
from quorate.services import AgentView
from quorate.text import whole_number

from ._journal import Journal

if TYPE_CHECKING:
    from ._server import Server  # brings waitress

_RESOLVE_TIMEOUT_SECONDS = 5.0
#: How long the agent's end waits for an answer that is being made.
_LAST_ANSWER_SECONDS = 2.0


def start(agent: AgentView, variable: str) -> HealthService | None:
    """Serve at the port of ``--health-port``, else of the environment's ``variable``.

    Where that cannot be done, ``None`` is returned and a sentence is printed for people.
    """
    port = agent.settings.get("health_port")
    if port is None:
        text = agent.environment.get(variable, "")
        port = whole_number(text)
        if port is None or port > 65535:
            agent.say(f"warning: {variable}={text} is not a port; the health server is not started")
            return None
    host = agent.settings.get("health_host") or "127.0.0.1"
    try:
        # One address: what is served may be confidential, so that it is served where the flag says and nowhere else.
        (listener,) = listen(resolve(host, port, _RESOLVE_TIMEOUT_SECONDS), one_socket=True)
    except OSError as error:
        where = f"{host} port {port}"
        agent.say(f"warning: no health server at {where}: {error.strerror or error}; the job runs without one")
        return None
    return HealthService(agent, listener, host)


@final
class HealthService:
    """Serves until it is closed.

    Arguments:
        agent: whose state is served.
        listener: a listening socket, owned by the service from now on.
        host: the host that was asked for.

    Attributes:
        port: the port that it listens at.
    """

    def __init__(self, agent: AgentView, listener: socket.socket, host: str) -> None:
        self._agent, self._listener = agent, listener
        self._journal = Journal()
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        address = listener.getsockname()
        self.port: int = address[1]
        self._own_name = host.lower() if address[0] == "::1" or address[0].startswith("127.") else ""
        agent.say(f"health server at http://{format_endpoint(host, self.port)}/status")
        self._thread = threading.Thread(target=self._run, name="quorate-health", daemon=True)
        self._thread.start()

    @property
    def worker_environment(self) -> Mapping[str, str]:
        return {}

    def observe(self, event: Event) -> None:
        self._journal.observe(event)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.stop()
        os.eventfd_write(self._wake, 1)
        self._thread.join(_LAST_ANSWER_SECONDS)
        if self._server is not None:
            self._server.join(_LAST_ANSWER_SECONDS)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # the job goes on without a health page; the log says why
            self._agent.say(f"warning: the health server has failed: {type(error).__name__}: {error}")

    def _serve(self) -> None:
        self._await_client()
        try:
            server = None if self._closed else self._load()
        except Exception as error:
            self._agent.say(f"warning: the health server could not be loaded: {error or type(error).__name__}")
            server = None
        if server is None:
            self._listener.close()
            return
        with self._lock:
            self._server = server
            if self._closed:
                server.stop()
        server.run()

    def _await_client(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        poller.poll()

    def _load(self) -> Server:
        with import_lock:
            from . import _app, _server  # waitress, and all that makes answers: only a client needs them

        return _server.Server(_app.Application(self._agent, self._journal, self._own_name), self._listener)
