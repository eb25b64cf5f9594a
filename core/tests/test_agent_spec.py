"""``WorkerSpec``: its defaults and bounds are those of ``LaunchConfig``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, fields

from quorate import LaunchConfig, LocalElasticAgent, UsageError, WorkerSpec, get_rendezvous_handler
from quorate.agent._protocol import Grace

CONFIG = LaunchConfig(1, 1, 2, role="trainer")
HANDLER = get_rendezvous_handler(CONFIG.rendezvous_parameters())
SHARED = {own.name for own in fields(WorkerSpec)} & {own.name for own in fields(LaunchConfig)}


def test_defaults_are_those_of_a_launch() -> None:
    spec = WorkerSpec("trainer", 2, HANDLER, "true")
    assert {name: getattr(spec, name) for name in SHARED} == {name: getattr(CONFIG, name) for name in SHARED}
    assert spec.args == ()
    assert spec.get_entrypoint_name() == "true"


def test_a_launch_passes_on_everything_that_both_have() -> None:
    config = evolve(
        CONFIG,
        max_nodes=2,
        max_restarts=7,
        monitor_interval=0.5,
        local_addr="10.0.0.1",
        node_rank=1,
        shutdown_timeout=2.0,
        signals_to_handle="SIGUSR1",
        virtual_local_rank=True,
        environment={"A": "b"},
        event_log_handler="console",
        health_interval=9.0,
        settings={"c": 1},
        master_addr="10.0.0.2",
        master_port=1234,
    )
    spec = WorkerSpec.from_config(config, HANDLER, "python", ("train.py",))
    assert {name: getattr(spec, name) for name in SHARED} == {name: getattr(config, name) for name in SHARED}
    assert (spec.local_world_size, spec.entrypoint, spec.args) == (2, "python", ("train.py",))
    hinted = WorkerSpec.from_config(evolve(CONFIG, rdzv_configs={"rank": "0"}), HANDLER, "true")
    assert hinted.node_rank == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"local_world_size": 0},
        {"max_restarts": -1},
        {"monitor_interval": 0.0},
        {"shutdown_timeout": float("inf")},
        {"health_interval": -1.0},
        {"node_rank": -1},
        {"master_port": 0},
        {"signals_to_handle": ("SIGKILL",)},
        {"grace": {"reboot": 1.0}},
        {"grace": {"restart": "soon"}},
        {"grace": {"restart": float("nan")}},
        {"grace": 5},
        {"environment": 5},
    ],
)
def test_a_value_out_of_its_range_is_refused(changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {"role": "r", "local_world_size": 1, "rdzv_handler": HANDLER, "entrypoint": "true"}
    with pytest.raises(UsageError):
        WorkerSpec(**{**values, **changes})


def test_each_cause_of_a_stop_has_its_grace() -> None:
    spec = WorkerSpec("r", 1, HANDLER, "true", shutdown_timeout=8.0, grace={"restart": 1.0})
    assert spec.grace_periods() == Grace(1.0, 8.0, 8.0, 8.0)


@pytest.mark.parametrize(
    "changes",
    [
        *({"entrypoint": value} for value in (None, "", 5, b"true", ["true"], Path("true"), "a\0b")),
        *({"role": value} for value in (None, 3, "\0")),
        *({"args": value} for value in (None, 5, "words", b"words")),
    ],
    ids=repr,
)
def test_what_can_never_run_is_refused_where_it_is_given(changes: dict[str, Any]) -> None:
    """And not by another object later, when other nodes wait already."""
    arguments = {"role": "", "local_world_size": 1, "rdzv_handler": HANDLER, "entrypoint": print, "args": ()}
    with pytest.raises(UsageError, match=next(iter(changes))):
        WorkerSpec(**{**arguments, **changes})


@pytest.mark.parametrize("timeout", [None, "soon", -1, float("nan")])
def test_an_agent_refuses_what_it_cannot_use(timeout: Any) -> None:
    spec = WorkerSpec("", 1, HANDLER, print)
    with pytest.raises(UsageError, match="exit_barrier_timeout"):
        LocalElasticAgent(spec, exit_barrier_timeout=timeout)
    for no_handler in (None, "c10d"):
        with pytest.raises(UsageError, match="rdzv_handler"):
            LocalElasticAgent(evolve(spec, rdzv_handler=no_handler))
    not_a_spec: Any = {"role": ""}
    with pytest.raises(UsageError, match="WorkerSpec"):
        LocalElasticAgent(not_a_spec)


def test_arguments_of_a_command_are_text() -> None:
    assert WorkerSpec("", 1, HANDLER, "echo", (1, b"two", Path("three"), None)).args == ("1", "two", "three", "None")
    assert WorkerSpec("", 1, HANDLER, print, [1, None]).args == (1, None)
