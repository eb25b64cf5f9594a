"""What workers get of the agent's environment and of its services; the whole contract is tested with real jobs."""

from __future__ import annotations

import pytest

from quorate.agent._environment import base_environment


def test_an_inherited_variable_wins_unless_it_is_another_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent within a worker has inherited that worker's QUORATE_ variables; its own workers must not."""
    monkeypatch.setenv("SET", "by the user")
    monkeypatch.setenv("QUORATE_CHANNEL", "of the outer agent")
    monkeypatch.setenv("QUORATE_OTHER", "inherited")
    services = {"SET": "by a service", "UNSET": "by a service", "QUORATE_CHANNEL": "our own"}
    found = base_environment(services)
    assert {name: found[name] for name in (*services, "QUORATE_OTHER")} == {
        "SET": "by the user",
        "UNSET": "by a service",
        "QUORATE_CHANNEL": "our own",
        "QUORATE_OTHER": "inherited",
    }
