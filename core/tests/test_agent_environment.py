"""What workers get of the agent's environment and of its services; the whole contract is tested with real jobs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from quorate.agent._environment import base_environment
from quorate.agent._spec import WorkerSpec


def spec(**settings: Any) -> WorkerSpec:
    return WorkerSpec("role", 1, cast(Any, None), "true", **settings)


def test_workers_get_the_job_token_only_if_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    token = {"QUORATE_JOB_TOKEN": "0123456789abcdef", "QUORATE_JOB_TOKEN_FILE": "/path"}
    for name, value in token.items():
        monkeypatch.setenv(name, value)
    assert not token.keys() & base_environment(spec(), {}).keys()
    assert token.items() <= base_environment(spec(share_job_token=True), {}).items()


def test_an_inherited_variable_wins_unless_it_is_another_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent within a worker has inherited that worker's QUORATE_ variables; its own workers must not."""
    monkeypatch.setenv("SET", "by the user")
    monkeypatch.setenv("QUORATE_CHANNEL", "of the outer agent")
    monkeypatch.setenv("QUORATE_OTHER", "inherited")
    services = {"SET": "by a service", "UNSET": "by a service", "QUORATE_CHANNEL": "our own"}
    found = base_environment(spec(), services)
    assert {name: found[name] for name in (*services, "QUORATE_OTHER")} == {
        "SET": "by the user",
        "UNSET": "by a service",
        "QUORATE_CHANNEL": "our own",
        "QUORATE_OTHER": "inherited",
    }
