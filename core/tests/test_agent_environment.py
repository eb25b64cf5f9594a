"""What workers get of the agent's environment and of its services; the whole contract is tested with real jobs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from quorate.agent._environment import base_environment, worker_environment
from quorate.agent._spec import WorkerSpec
from quorate.records import Assignment


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


def test_a_workers_generation_rises_with_each_round_whether_or_not_it_counts_as_a_restart() -> None:
    rounds = [Assignment(number, "n", "role", 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1) for number in (0, 1, 7)]
    found = [worker_environment(spec(), assignment, 0, "job", {}) for assignment in rounds]
    assert [variables["QUORATE_GENERATION"] for variables in found] == ["1", "2", "8"]
    assert {variables["TORCHELASTIC_RESTART_COUNT"] for variables in found} == {"0"}
