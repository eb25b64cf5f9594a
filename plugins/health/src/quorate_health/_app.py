"""The WSGI application: which address answers what.  How it is served does not live here (:mod:`._server`)."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

from quorate.import_lock import import_lock
from quorate.services import AgentView

from ._journal import Journal
from ._page import PAGE_POLICY, page_of, part_of
from ._pulse import DEADLINE_SECONDS, Pulse, StoreProbe
from ._status import Status

_StartResponse = Callable[..., Any]
_Environ = dict[str, Any]
_Answer = tuple[str, str, bytes]  # status, content type, body

_JSON, _TEXT, _HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"
_OK, _UNAVAILABLE = "200 OK", "503 Service Unavailable"
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", PAGE_POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


@final
class Application:
    """Answers for one agent.

    Arguments:
        agent: whose state is served.
        journal: the notes of its events.
        own_name: the host name that the server was bound to, ``""`` if other machines can reach it.
    """

    def __init__(self, agent: AgentView, journal: Journal, own_name: str = "") -> None:
        self._agent, self._journal, self._own_name = agent, journal, own_name
        self._pulse = Pulse(agent)
        self._status = Status(agent, journal, self._pulse)
        self._store = StoreProbe(agent)
        self._metrics: Callable[..., Iterable[bytes]] | None = None
        self._shown: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._answers: dict[str, Callable[[str], _Answer]] = {
            "/livez": lambda query: _as_text(self._not_live(self._pulse.ask())),
            "/readyz": lambda query: _as_text(self._not_ready()),
            "/healthz": self._healthz,
            "/status": self._page,
            "/status.json": lambda query: (_OK, _JSON, self._rendered("json", _dump)),
        }

    def __call__(self, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if not self._is_own_name(environ.get("HTTP_HOST", "")):
            return _send(start_response, ("421 Misdirected Request", _TEXT, b"this server has another name\n"))
        if path == "/":
            return _send(start_response, ("302 Found", _TEXT, b"see /status\n"), ("Location", "status"))
        if path not in self._answers and path != "/metrics":
            known = ", ".join(sorted([*self._answers, "/metrics"]))
            return _send(start_response, ("404 Not Found", _TEXT, f"there are {known}\n".encode()))
        if method not in ("GET", "HEAD"):
            answer = ("405 Method Not Allowed", _TEXT, b"everything here is read with GET\n")
            return _send(start_response, answer, ("Allow", "GET, HEAD"))
        if path == "/metrics":
            metrics = self._load_metrics()({**environ, "REQUEST_METHOD": "GET"}, start_response)
            return metrics if method == "GET" else [b""]
        status, kind, body = self._answers[path](environ.get("QUERY_STRING", ""))
        return _send(start_response, (status, kind, body if method == "GET" else b""))

    def _is_own_name(self, header: str) -> bool:
        """Return whether a browser's request is meant for this server, where only this machine can reach it.

        Any web site can give its own name the address 127.0.0.1 and have its visitors' browsers read from here (DNS
        rebinding).  Addresses and names that no site can own are accepted.
        """
        if not self._own_name or not header:
            return True
        name = header.rpartition(":")[0] if not header.endswith("]") and ":" in header else header
        name = name.strip("[]").lower().rstrip(".")
        if name in ("localhost", self._own_name) or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _load_metrics(self) -> Callable[..., Iterable[bytes]]:
        if self._metrics is None:
            with import_lock:
                from ._metrics import metrics_application  # brings prometheus-client: only a scrape needs it

                self._metrics = metrics_application(self._agent, self._journal, self._store)
        return self._metrics

    def _healthz(self, query: str) -> _Answer:
        turn_seconds = self._pulse.ask()
        not_live, not_ready = self._not_live(turn_seconds), self._not_ready()
        reasons = not_live + not_ready
        body = {
            "is_healthy": not reasons,
            "is_live": not not_live,
            "is_ready": not not_ready,
            "reasons": reasons,
            "phase": self._agent.snapshot().phase,
            "turn_seconds": turn_seconds,
        }
        return _UNAVAILABLE if reasons else _OK, _JSON, _dump(body)

    def _not_live(self, turn_seconds: float | None) -> list[str]:
        if turn_seconds is not None:
            return []
        return [f"the agent has not taken a turn within {DEADLINE_SECONDS:g} s"]

    def _not_ready(self) -> list[str]:
        snapshot = self._agent.snapshot()
        if snapshot.is_running:
            return []
        reason = f": {snapshot.reason}" if snapshot.reason else ""
        return [f"no workers run in a sealed round; the agent is {snapshot.phase}{reason}"]

    def _page(self, query: str) -> _Answer:
        make = part_of if query == "part" else page_of
        return _OK, _HTML, self._rendered(make.__name__, lambda status: make(status).encode(errors="replace"))

    def _rendered(self, name: str, make: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the status as ``make`` shows it; made once for each look, however many clients ask."""
        status = self._status.look()
        of, shown = self._shown.get(name, (None, b""))
        if of is not status:
            shown = make(status)
            self._shown[name] = status, shown
        return shown


def _send(start_response: _StartResponse, answer: _Answer, *headers: tuple[str, str]) -> Iterable[bytes]:
    status, kind, body = answer
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *_HEADERS, *headers])
    return [body]


def _as_text(problems: Sequence[str]) -> _Answer:
    return _UNAVAILABLE if problems else _OK, _TEXT, "".join(f"{line}\n" for line in problems or ["ok"]).encode()


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
