"""What an agent does with the time in which it waits for others, and what it does not load at all."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import pytest

from quorate.agent._idle import IdleWork
from quorate.agent._services import Services, View
from quorate.catalogue import ServiceBackend
from quorate.testing import free_port


def test_a_join_that_takes_a_moment_only_is_not_used() -> None:
    done: list[str] = []
    work = IdleWork(lambda: done.append("one"), 0.5)
    assert work.wake_at() is None
    work.begin(10.0)
    assert work.wake_at() == 10.5
    work.advance(10.4)
    work.cancel()
    work.advance(11.0)
    assert done == []
    assert work.wake_at() is None


def test_the_task_is_done_once_in_the_first_wait_that_is_long_enough() -> None:
    done: list[str] = []
    work = IdleWork(lambda: done.append("one"), 0.5)
    work.begin(10.0)
    work.cancel()
    work.begin(20.0)
    work.advance(20.5)
    assert done == ["one"]
    assert work.wake_at() is None
    work.begin(30.0)
    work.advance(31.0)
    assert done == ["one"]


class Service:
    """A service that may be able to get ready, and may fail at it."""

    worker_environment: dict[str, str] = {}

    def __init__(self, problem: str = "") -> None:
        self.problem, self.calls = problem, list[str]()

    def observe(self, event: Any) -> None:
        self.calls.append("observe")

    def close(self) -> None:
        self.calls.append("close")


class ReadyService(Service):
    def get_ready(self) -> None:
        self.calls.append("get_ready")
        if self.problem:
            raise RuntimeError(self.problem)


class Host:
    """A plugin host that offers ``services``."""

    def __init__(self, services: dict[str, Service]) -> None:
        self.services = services

    def catalogue(self, kind: str) -> dict[str, ServiceBackend]:
        if kind != "service":
            return {}
        return {name: ServiceBackend(name, "a test's", self._give(name)) for name in self.services}

    def _give(self, name: str) -> Any:
        return lambda view: self.services[name]


def test_services_get_ready_if_they_can_and_one_that_fails_is_stopped() -> None:
    plain, ready, broken = Service(), ReadyService(), ReadyService("no such module")
    told: list[str] = []
    host = Host({"plain": plain, "ready": ready, "broken": broken})
    services = Services(cast("View", None), told.append)
    services.start(cast("Any", host))
    services.get_ready()
    services.observe(cast("Any", None))
    assert plain.calls == ["observe"]
    assert ready.calls == ["get_ready", "observe"]
    assert broken.calls == ["get_ready", "close"]
    assert told == ["service 'broken' raised RuntimeError: no such module; it is stopped"]


def said(code: str) -> list[str]:
    """Run ``code`` in a process of its own; return the words that it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.needs("quorate-rendezvous-static", "quorate-process-local", "quorate-watchdog")
def test_a_node_that_waits_for_others_loads_what_its_first_workers_will_need() -> None:
    code = (
        "import sys\n"
        "from quorate import LaunchConfig, RendezvousTimeoutError, launch\n"
        "config = LaunchConfig(min_nodes=2, max_nodes=2, nproc_per_node=1, run_id='wait', rdzv_backend='tcp',\n"
        f"    rdzv_endpoint='127.0.0.1:{free_port()}', rdzv_configs={{'join_timeout': 2.0, 'is_host': True}})\n"
        "try:\n"
        "    launch(config, sys.executable)('-c', 'pass')\n"
        "except RendezvousTimeoutError:\n"
        "    print({'quorate_watchdog._server', 'quorate_watchdog._timekeeper'} <= set(sys.modules))\n"
    )
    assert said(code) == ["True"]


@pytest.mark.needs("quorate-process-local")
def test_an_agent_loads_no_heavy_library_that_it_does_not_need() -> None:
    code = (
        "import sys\n"
        "from quorate import LaunchConfig, launch\n"
        "config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)\n"
        "launch(config, sys.executable)('-S', '-c', 'pass')\n"
        "print(*{'torch', 'numpy', 'grpc', 'pynvml', 'waitress', 'prometheus_client', 'asyncio'} & set(sys.modules))\n"
    )
    assert said(code) == []


def test_a_service_whose_variables_cannot_be_used_is_closed() -> None:
    """It has started, and may hold threads and files."""
    service = Service()
    service.worker_environment = cast("Any", {"PORT": 80})
    told: list[str] = []
    services = Services(cast("View", None), told.append)
    services.start(cast("Any", Host({"odd": service})))
    assert service.calls == ["close"]
    assert "service 'odd' could not be started: TypeError: its worker_environment is {'PORT': 80}" in told[0]
    assert not services
    assert services.environment == {}
