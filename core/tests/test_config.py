"""``LaunchConfig`` and ``Timeouts``: what they refuse, and what follows from them."""

from __future__ import annotations

import enum
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from quorate import (
    DefaultLogsSpecs,
    LaunchConfig,
    PluginHost,
    Std,
    UsageError,
    WorkerSpec,
    get_rendezvous_handler,
    hookimpl,
)
from quorate.rendezvous import InMemoryStore, RendezvousBackend, RendezvousParameters
from quorate.timeouts import Timeouts
from quorate.worker_settings import WorkerSettings


def config(min_nodes: int = 1, max_nodes: int = 1, nproc_per_node: int = 1, **others: Any) -> LaunchConfig:
    return LaunchConfig(min_nodes, max_nodes, nproc_per_node, **others)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"log_dir": "a\0"}, ["'a\\x00'", "--log-dir"]),
        ({"log_dir": b"logs"}, ["b'logs'", "--log-dir"]),
        ({"redirects": 3}, ["redirects is 3", "Std"]),
        ({"redirects": {0: "3"}}, ["redirects is {0: '3'}", "Std"]),
        ({"tee": None}, ["tee is None", "Std"]),
    ],
)
def test_log_settings_that_cannot_work_are_refused_where_they_are_made(settings: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        DefaultLogsSpecs(**settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


class TorchStd(enum.IntFlag):
    """As torch's own."""

    OUT, ERR, ALL = 1, 2, 3


def test_torchs_own_stream_numbers_are_taken() -> None:
    specs = DefaultLogsSpecs(redirects=TorchStd.ALL, tee={0: TorchStd.OUT | TorchStd.ERR, 1: TorchStd.OUT})  # type: ignore[arg-type, dict-item] # not ours
    assert specs._redirects is Std.ALL
    assert specs._tee == {0: Std.ALL, 1: Std.OUT}


def test_text_that_is_a_number_of_seconds_is_one() -> None:
    made = config(monitor_interval="0.5", health_interval="2")
    assert (made.monitor_interval, made.health_interval) == (0.5, 2.0)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)


def test_defaults_are_those_that_programs_rely_on() -> None:
    made = LaunchConfig(min_nodes=1, max_nodes=2, nproc_per_node=3)
    assert (made.min_nodes, made.max_nodes, made.nproc_per_node) == (1, 2, 3)
    assert (made.run_id, made.role, made.max_restarts, made.monitor_interval) == ("", "default_role", 3, 0.1)
    assert (made.start_method, made.event_log_handler, made.shutdown_timeout) == ("spawn", "null", 30.0)
    assert made.signals_to_handle == ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    assert type(made.logs_specs) is DefaultLogsSpecs
    assert made.local_addr is None
    assert made.log_line_prefix_template is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_nodes": 0}, ["min_nodes is 0", "--nnodes"]),
        ({"min_nodes": 3, "max_nodes": 2}, ["minimum number of nodes (3)", "maximum (2)", "--nnodes=MIN:MAX"]),
        ({"nproc_per_node": 0}, ["nproc_per_node is 0", "--nproc-per-node"]),
        ({"nproc_per_node": "2"}, ["nproc_per_node is '2'", "whole number"]),
        ({"nproc_per_node": True}, ["nproc_per_node is True"]),
        ({"nproc_per_node": 10**30}, ["nproc_per_node is 10", "at most 65536", "--nproc-per-node"]),
        ({"max_nodes": 65537}, ["max_nodes is 65537", "at most 65536", "--nnodes"]),
        ({"max_restarts": 1 << 31}, ["max_restarts is 2147483648", "at most 2147483647", "--max-restarts"]),
        ({"max_restarts": -1}, ["max_restarts is -1", "--max-restarts"]),
        ({"monitor_interval": 0}, ["monitor_interval is 0", "--monitor-interval"]),
        ({"monitor_interval": float("nan")}, ["monitor_interval", "finite"]),
        ({"exit_barrier_timeout": -1}, ["exit_barrier_timeout", "at least 0"]),
        ({"shutdown_timeout": -1}, ["shutdown_timeout", "at least 0"]),
        ({"rdzv_timeout": -5}, ["rdzv_timeout is -5"]),
        ({"node_rank": 1}, ["node_rank is 1", "at most 1", "--nnodes"]),
        ({"node_rank": -1}, ["node_rank is -1"]),
        ({"master_port": 65536}, ["master_port is 65536", "--master-port"]),
        ({"master_port_range": "9:8"}, ["master_port_range is '9:8'", "--master-port-range"]),
        ({"master_port": 7, "master_port_range": "5:9"}, ["contradict each other", "--master-port-range"]),
        ({"start_method": ""}, ["start_method is empty", "--start-method"]),
        ({"signals_to_handle": "SIGTERM,SIGKILL"}, ["SIGKILL", "--signals-to-handle"]),
        ({"signals_to_handle": "SIGNONE"}, ["SIGNONE", "not a signal"]),
        ({"signals_to_handle": " , "}, ["signals_to_handle is empty"]),
        ({"signals_to_handle": 15}, ["15 does not name signals", "SIGTERM"]),
        ({"forward_signals": [signal.SIGUSR1]}, ["SIGUSR1", "does not name signals"]),
        ({"console_ranks": 3}, ["console_ranks is 3", "--console-ranks"]),
        ({"environment": 3}, ["environment is 3", "mapping"]),
        ({"settings": ["a"]}, ["settings is ['a']", "mapping"]),
        ({"rdzv_configs": 1.5}, ["rdzv_configs is 1.5", "mapping"]),
        ({"rdzv_endpoint": 1.5}, ["rdzv_endpoint is 1.5", "--rdzv-endpoint"]),
        ({"rdzv_backend": b"tcp"}, ["rdzv_backend is b'tcp'", "--rdzv-backend"]),
        ({"run_id": 7}, ["run_id is 7", "--rdzv-id"]),
        ({"duplicate_stdout_filters": 5}, ["list of words", "5"]),
        ({"duplicate_stdout_filters": "word"}, ["list of words", "'word'"]),
        ({"duplicate_stderr_filters": [1]}, ["list of words", "[1]"]),
        ({"monitor_interval": "soon"}, ["monitor_interval", "'soon'", "--monitor-interval"]),
        ({"health_interval": "soon"}, ["health_interval", "'soon'", "--health-interval"]),
        ({"role": "a\0"}, ["role is 'a\\x00'", "NUL", "--role"]),
        ({"role": "\ud800"}, ["role is '\\ud800'", "--role"]),
        ({"log_line_prefix_template": 5}, ["log_line_prefix_template is 5"]),
        ({"master_addr": 5}, ["master_addr is 5", "--master-addr"]),
        ({"master_addr": "\0"}, ["master_addr is '\\x00'", "--master-addr"]),
        ({"local_addr": b"host"}, ["local_addr is b'host'", "--local-addr"]),
        ({"local_addr": "host\n"}, ["local_addr is 'host\\n'", "not a name", "--local-addr"]),
        ({"local_addr": "\ufeffhost"}, ["local_addr is '\\ufeffhost'", "not a name"]),
        ({"environment": {"SECRETS": 1}}, ["environment has 'SECRETS' of type int"]),
        ({"environment": {"A=B": "c"}}, ["environment has 'A=B'"]),
        ({"environment": {"A": "\0"}}, ["environment has 'A'"]),
        ({"rdzv_configs": {"join_timeout": "soon"}}, ["join_timeout", "'soon'", "seconds"]),
        ({"rdzv_configs": {"join_timeout": 0}}, ["join_timeout is 0"]),
        ({"rdzv_configs": {"lease_timeout": 0.1}}, ["lease_timeout=0.1", "0.2"]),
        ({"rdzv_configs": {"join_timeout": 5, "connect_timeout": 6}}, ["connect_timeout=6", "join_timeout=5"]),
        ({"rdzv_configs": {"join_timeout": 5, "settle_timeout": 6}}, ["settle_timeout=6", "join_timeout=5"]),
        (
            {"rdzv_configs": {"lease_timeout": 9, "store_outage_timeout": 8}},
            ["lease_timeout=9", "store_outage_timeout=8"],
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_name_and_remedy(changes: dict[str, Any], words: list[str]) -> None:
    """Each gives one clear error that names the thing and the remedy."""
    with pytest.raises(UsageError) as caught:
        config(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shutdown_timeout_comes_from_the_environment_when_it_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "7")
    assert config().shutdown_timeout == 7.0
    assert config(shutdown_timeout=8).shutdown_timeout == 8.0
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "long")
    with pytest.raises(UsageError, match="TORCH_ELASTIC_SHUTDOWN_TIMEOUT is 'long'"):
        config()


def test_signals_are_a_string_or_a_sequence() -> None:
    assert config(signals_to_handle="sigterm, SIGUSR1,SIGTERM").signals_to_handle == ("SIGTERM", "SIGUSR1")
    assert config(signals_to_handle=["SIGUSR2"]).signals_to_handle == ("SIGUSR2",)


# --- time-outs --------------------------------------------------------------------------------------------------------


def test_defaults_of_time_outs_give_way_to_what_was_set() -> None:
    short = Timeouts.from_settings({"join_timeout": "2"})
    assert (short.join_timeout, short.connect_timeout, short.last_call_timeout) == (2.0, 2.0, 5.0)
    long = Timeouts.from_settings({"connect_timeout": 900})
    assert (long.connect_timeout, long.join_timeout) == (900.0, 900.0)
    assert Timeouts.from_settings({"lease_timeout": 400}).store_outage_timeout == 400.0
    assert Timeouts.from_settings({"lease_timeout": 2}).reading_interval == 0.5


def test_the_spellings_of_torchelastic_are_understood() -> None:
    assert Timeouts.from_settings({"timeout": "900"}).join_timeout == 900.0
    assert Timeouts.from_settings({"timeout": "900", "join_timeout": 70}).join_timeout == 70.0
    assert Timeouts.from_settings({"keep_alive_interval": "2", "keep_alive_max_attempt": "4"}).lease_timeout == 8.0
    assert Timeouts.from_settings({"keep_alive_interval": 1, "lease_timeout": 2}).lease_timeout == 2.0
    assert config(rdzv_timeout=44).timeouts().join_timeout == 44.0


@pytest.mark.needs("quorate-rendezvous-static")
def test_a_worker_specification_has_the_defaults_and_the_bounds_of_a_launch() -> None:
    made = config()
    handler = get_rendezvous_handler(made.rendezvous_parameters())
    spec = WorkerSpec("r", 1, handler, "true")
    shared = attrs.fields(WorkerSettings)
    assert {each.name: getattr(spec, each.name) for each in shared} == made.worker_settings()
    assert WorkerSpec.from_config(made, handler, "true").worker_settings() == made.worker_settings()
    for name, value in (("max_restarts", -1), ("monitor_interval", 0), ("master_port", 0), ("health_interval", -1)):
        with pytest.raises(UsageError, match=f"{name}.*--{name.replace('_', '-')}"):
            WorkerSpec("r", 1, handler, "true", **{name: value})
        with pytest.raises(UsageError, match=f"{name}.*--{name.replace('_', '-')}"):
            config(**{name: value})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.floats(0.2, 2000)
            for name in (
                "join_timeout",
                "last_call_timeout",
                "connect_timeout",
                "lease_timeout",
                "store_outage_timeout",
            )
        },
    )
)
def test_time_outs_are_consistent_or_refused_and_what_was_set_is_kept(settings: dict[str, float]) -> None:
    try:
        made = Timeouts.from_settings(settings)
    except UsageError:
        assert len(settings) >= 2, "a single setting never contradicts a default"
        return
    assert max(made.connect_timeout, made.settle_timeout) <= made.join_timeout
    assert made.lease_timeout <= made.store_outage_timeout
    assert {name: getattr(made, name) for name in settings} == settings


# --- what follows -----------------------------------------------------------------------------------------------------


def test_all_time_outs_reach_the_rendezvous_beside_the_backends_own_settings() -> None:
    made = config(rdzv_configs={"join_timeout": 30, "is_host": "1"})
    parameters = made.rendezvous_parameters()
    assert parameters.get_as_bool("is_host") is True
    assert {name: parameters.get(name) for name in attrs.asdict(made.timeouts())} == attrs.asdict(made.timeouts())


@pytest.mark.needs("quorate-rendezvous-static")
def test_one_node_without_an_endpoint_stands_alone_and_several_meet_over_tcp() -> None:
    assert config().rendezvous_parameters().backend == "standalone"
    assert config(rdzv_endpoint="h:1").rendezvous_parameters().backend == "tcp"
    assert config(max_nodes=2, rdzv_endpoint="h:1").rendezvous_parameters().backend == "tcp"
    assert config(rdzv_backend="static", rdzv_endpoint="h:1").rendezvous_parameters().backend == "static"


@pytest.mark.needs("quorate-rendezvous-static", "quorate-rendezvous-c10d", "quorate-rendezvous-etcd")
@pytest.mark.parametrize(
    ("name", "chosen"), [("c10d", "standalone"), ("tcp", "standalone"), ("etcd", "etcd"), ("gone", "gone")]
)
def test_one_node_needs_no_endpoint_where_its_own_nodes_serve_the_store(name: str, chosen: str) -> None:
    assert config(rdzv_backend=name).backend() == chosen
    assert config(rdzv_backend=name, rdzv_endpoint="h:1").backend() == name
    assert config(max_nodes=2, rdzv_backend=name).backend() == name


def test_variables_of_torchelastic_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_EXIT_BARRIER_TIMEOUT", "7")
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGUSR1")
    assert (config().exit_barrier_timeout, config().signals_to_handle) == (7.0, ("SIGTERM", "SIGUSR1"))
    made = config(exit_barrier_timeout=3, signals_to_handle="SIGINT")
    assert (made.exit_barrier_timeout, made.signals_to_handle) == (3.0, ("SIGINT",))
    monkeypatch.setenv("TORCH_ELASTIC_EXIT_BARRIER_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="TORCH_ELASTIC_EXIT_BARRIER_TIMEOUT"):
        config()
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    assert "SIGQUIT" in config(exit_barrier_timeout=3).signals_to_handle


def test_logs_specs_may_be_the_fourth_argument_and_errors_of_usage_are_value_errors() -> None:
    specs = DefaultLogsSpecs(log_dir="here")
    assert LaunchConfig(1, 1, 1, specs).logs_specs is specs
    with pytest.raises(ValueError, match="min_nodes"):
        LaunchConfig(0, 1, 1)


def test_a_single_nodes_job_gets_a_new_run_id_at_each_launch() -> None:
    made = config()
    first, second = made.rendezvous_parameters().run_id, made.rendezvous_parameters().run_id
    assert len({first, second, "none", ""}) == 4


@pytest.mark.needs("quorate-rendezvous-c10d")
def test_nodes_that_spell_the_endpoint_differently_still_agree_on_the_run_id() -> None:
    ids = {
        config(2, 2, rdzv_backend="c10d", rdzv_endpoint=endpoint).rendezvous_parameters().run_id
        for endpoint in ("localhost:29400", "127.0.0.1:29400", "[::1]:29400")
    }
    assert len(ids) == 1


@pytest.mark.needs("quorate-rendezvous-etcd")
def test_a_store_that_others_use_too_needs_a_run_id() -> None:
    shared = config(2, 2, rdzv_backend="etcd", rdzv_endpoint="h:2379")
    with pytest.raises(UsageError, match="set --rdzv-id"):
        shared.rendezvous_parameters()
    assert attrs.evolve(shared, run_id="mine").rendezvous_parameters().run_id == "mine"


@pytest.mark.needs("quorate-rendezvous-static")
def test_the_rank_is_a_setting_of_the_backend_and_a_hint_for_the_ranks() -> None:
    made = config(2, 2, rdzv_backend="static", rdzv_endpoint="h:1", node_rank=1)
    assert made.rendezvous_parameters().get_as_int("rank") == 1
    assert made.rank_hint() == 1
    assert config(2, 2, rdzv_endpoint="h:1", rdzv_configs={"rank": "1"}).rank_hint() == 1
    assert config(2, 2, rdzv_endpoint="h:1").rank_hint() is None
    with pytest.raises(UsageError, match="node_rank is 2, but the job has at most 2"):
        config(2, 2, rdzv_endpoint="h:1", rdzv_configs={"rank": "2"}).rank_hint()


def test_duplicate_filters_join_given_logs_specs_without_changing_them() -> None:
    given_specs = DefaultLogsSpecs(log_dir="logs", duplicate_stderr_filters=["kept"])
    made = config(logs_specs=given_specs, duplicate_stdout_filters=["loss"])
    specs = made.worker_logs_specs()
    assert specs.duplicate_stdout_filters == ("loss",)
    assert specs.duplicate_stderr_filters == ("kept",)
    assert specs.root_log_dir == "logs"
    assert given_specs.duplicate_stdout_filters == ()
    assert config(logs_specs=given_specs).worker_logs_specs() is given_specs


def test_the_callers_settings_are_copied() -> None:
    settings = {"join_timeout": 30}
    made = config(rdzv_configs=settings)
    settings["join_timeout"] = -1
    assert made.timeouts().join_timeout == 30.0


# --- the job token ----------------------------------------------------------------------------------------------------


def test_the_use_of_the_job_token_is_a_setting_of_the_rendezvous() -> None:
    def auth(**settings: Any) -> Any:
        return LaunchConfig(1, 1, 1, **settings).rendezvous_parameters().get("auth")

    assert auth() is None
    assert auth(rdzv_auth="required") == "required"
    assert auth(rdzv_configs={"auth": "off"}) == "off"
    assert auth(rdzv_configs={"auth": "off"}, rdzv_auth="required") == "required"
    for wrong in ({"rdzv_auth": "always"}, {"rdzv_configs": {"auth": "always"}}):
        with pytest.raises(UsageError, match="'always' is not one of auto, required, off"):
            LaunchConfig(1, 1, 1, **wrong)


def test_secrets_are_not_shown() -> None:
    shown = repr(RendezvousParameters("etcd", "host:1", "job", 1, 2, password="hunter2", user="me", job_token="x" * 20))
    assert "hunter2" not in shown
    assert "xxx" not in shown
    assert "'user': 'me'" in shown


# --- settings that nothing reads --------------------------------------------------------------------------------------


def _backend(**fields: Any) -> RendezvousBackend:
    return RendezvousBackend("memory", "in this process", open_store=lambda parameters: InMemoryStore(), **fields)


def _open(backend: RendezvousBackend, **settings: Any) -> None:
    plugin = type("Plugin", (), {"quorate_register_rendezvous": staticmethod(hookimpl(lambda: [backend]))})
    host = PluginHost(paths=[], extra=[("memory", plugin)])
    get_rendezvous_handler(RendezvousParameters("memory", "", "job", 1, 1, **settings), host)


def test_a_setting_that_nothing_reads_is_refused_with_the_nearest_name() -> None:
    closed = _backend(settings={"colour": "of the store [red]"}, reads_other_settings=False)
    _open(closed, timeout=5, colour="blue", is_host=True, store_type="file", keep_alive_interval=3)
    with pytest.raises(UsageError, match=r"no setting 'join_timout' .*did you mean join_timeout\?"):
        _open(closed, join_timout=5)
    with pytest.raises(UsageError, match="no setting 'flavour'"):
        _open(closed, flavour="x")
    with pytest.raises(UsageError, match="it reads auth, close_timeout, colour"):
        _open(closed, zzz="x")


def test_a_backend_that_does_not_list_its_settings_gets_them() -> None:
    _open(_backend(), zzz="x", endpoint_of_mine="y")
    with pytest.raises(UsageError, match=r"did you mean lease_timeout\?"):
        _open(_backend(), lease_timeuot=5)


@pytest.mark.parametrize("run_id", ["\ud800", "a\0b", "x" * 1025, "€" * 400])
def test_a_run_id_that_no_store_takes_is_refused_at_once(run_id: str) -> None:
    with pytest.raises(UsageError, match=r"the run id .*--rdzv-id"):
        RendezvousParameters("tcp", "", run_id, 1, 1)
    with pytest.raises(UsageError, match=r"run.id .*--rdzv-id"):
        LaunchConfig(1, 1, 1, run_id=run_id).rendezvous_parameters()


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": 7},
        {"backend": b"tcp"},
        {"endpoint": 1.5},
        {"min_nodes": "1"},
        {"max_nodes": 1.0},
        {"max_nodes": True},
    ],
    ids=repr,
)
def test_parameters_of_a_wrong_type_are_refused_by_their_name(change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"backend": "tcp", "endpoint": "", "run_id": "x", "min_nodes": 1, "max_nodes": 1}
    (name,) = change
    with pytest.raises(UsageError, match=f"^{name} is "):
        RendezvousParameters(**usual | change)


@pytest.mark.parametrize("run_id", ["a\nb", "../x", "x" * 1024, "€" * 300])
def test_any_other_run_id_names_a_folder_for_logs(run_id: str, tmp_path: Path) -> None:
    assert LaunchConfig(1, 1, 1, run_id=run_id).rendezvous_parameters().run_id == run_id
    folder = DefaultLogsSpecs(str(tmp_path)).keep_run_dir(run_id)
    assert folder is not None
    assert Path(folder).parent == tmp_path
    assert Path(folder).is_dir()
