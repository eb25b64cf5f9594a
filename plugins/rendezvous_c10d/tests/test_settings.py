"""Endpoints and settings, without any I/O; wrong use names the thing and the remedy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from quorate.errors import UsageError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_c10d import plugin
from quorate_rendezvous_c10d._settings import Settings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node1:1234", "node1", 1234),
        ("node1", "node1", 29400),
        ("10.0.0.1:0", "10.0.0.1", 0),
        ("[fe80::1]:29500", "fe80::1", 29500),
        ("[::1]", "::1", 29400),
        ("::1", "::1", 29400),
        ("fe80::1%eth0", "fe80::1%eth0", 29400),
        (" node1:1234 ", "node1", 1234),
    ],
)
def test_endpoints_are_split(text: str, host: str, port: int) -> None:
    settings = _settings(text, max_nodes=1)
    assert (settings.host, settings.port) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "  ", ":29400", "node1:", "node1:port", "node1:70000", "node1:-1", "[::1", "[node1]:1", "[::1]29400", "a b:1"]
    + ["http://node1:80", "node1:1:2", "user@node1:1", "node1:\u0661"],
)
def test_malformed_endpoints_are_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT"):
        _settings(text, max_nodes=1)


def _settings(endpoint: str, max_nodes: int = 4, **config: Any) -> Settings:
    return Settings.from_parameters(RendezvousParameters("c10d", endpoint, "job", 1, max_nodes, **config))


def test_settings_of_others_are_left_alone() -> None:
    settings = _settings("node1:1", store_type="tcp", join_timeout=7, is_host="false", connect_timeout="2.5")
    assert settings.is_host is False
    assert settings.connect_timeout_seconds == 2.5


def test_port_0_is_for_a_host_or_a_single_node() -> None:
    assert _settings("localhost:0", is_host=True).is_host is True
    assert _settings("localhost:0", max_nodes=1).is_host is True
    with pytest.raises(UsageError, match="port 0"):
        _settings("localhost:0")


@pytest.mark.parametrize(
    "config", [{"is_host": "perhaps"}, {"connect_timeout": "soon"}, {"operation_timeout": 0}, {"linger_timeout": -1}]
)
def test_wrong_settings_are_named(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(config))):
        _settings("node1:1", **config)


def test_times_beyond_what_the_system_takes_are_cut() -> None:
    settings = _settings("node1:1", connect_timeout=1e300, operation_timeout=1e300, linger_timeout=1e300)
    times = settings.connect_timeout_seconds, settings.operation_timeout_seconds, settings.linger_timeout_seconds
    assert all(1e6 <= seconds < 2**31 / 1000 for seconds in times)


def test_the_backend_checks_without_opening() -> None:
    (backend,) = plugin.quorate_register_rendezvous()
    assert backend.name == "c10d"
    assert backend.check is not None
    backend.check(RendezvousParameters("c10d", "no-such-host.invalid:1", "job", 1, 2))
    with pytest.raises(UsageError, match="--rdzv-endpoint"):
        backend.check(RendezvousParameters("c10d", "", "job", 1, 2))


def test_importing_the_plugin_does_not_import_torch() -> None:
    script = (
        "import sys; from quorate_rendezvous_c10d import plugin;"
        "from quorate.rendezvous import RendezvousParameters as P;"
        "backend, = plugin.quorate_register_rendezvous(); backend.check(P('c10d', 'node1:1', 'job', 1, 2));"
        "backend.bootstrap();"
        "print(sorted({'torch', 'ctypes', 'subprocess', 'asyncio', 'logging'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
