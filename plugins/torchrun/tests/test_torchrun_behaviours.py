"""What programs rely on in ``torch.distributed.elastic``, by the names that this distribution offers for it.

``docs/torchelastic-behaviours.md`` names these tests, subject by subject.  What is torch's own there is imported in one
process of its own, for it costs seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import DefaultLogsSpecs
from quorate.clock import sleep
from quorate.proc import children_of, is_alive
from quorate.testing import settles
from quorate_torchrun import LaunchConfig, elastic_launch
from quorate_torchrun._errors import as_torch_has_it
from quorate_torchrun.elastic.multiprocessing import (
    MultiprocessContext,
    PContext,
    RunProcsResult,
    Std,
    SubprocessContext,
    start_processes,
    to_map,
)
from quorate_torchrun.elastic.rendezvous import (
    RendezvousGracefulExitError,
    RendezvousHandlerRegistry,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from quorate_torchrun.elastic.rendezvous.registry import get_rendezvous_handler

HANG = "import time; time.sleep(600)"


def twice(value: Any) -> Any:
    return value * 2


def fail_or_wait(fails: bool) -> None:
    if fails:
        raise ValueError("no luck")
    sleep(600)


def say(word: str) -> None:
    print(word, flush=True)
    print(f"{word} on stderr", file=sys.stderr, flush=True)


@pytest.fixture
def contexts() -> Iterator[list[PContext]]:
    started: list[PContext] = []
    yield started
    for each in started:
        each.close()


def start(contexts: list[PContext], entrypoint: Any, args: dict[int, tuple[Any, ...]], **keywords: Any) -> PContext:
    keywords = {
        "envs": {rank: {} for rank in args},
        "logs_specs": DefaultLogsSpecs(),
        "start_method": "fork",
        **keywords,
    }
    contexts.append(start_processes("trainer", entrypoint, args, **keywords))
    return contexts[-1]


# --- names ----------------------------------------------------------------------------------------------------------


#: Prints the public names of torch's module that ours lacks, module by module; what torch has imported is not its own.

NAMES = """
import importlib, json, sys, types
def own(module):
    for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
        home = getattr(getattr(module, name), "__module__", "torch.distributed.elastic")
        if home.startswith("torch.distributed.elastic") and not isinstance(getattr(module, name), types.ModuleType):
            yield name
def missing(name):
    ours = importlib.import_module("quorate_torchrun.elastic." + name)
    return sorted(set(own(importlib.import_module("torch.distributed.elastic." + name))) - set(dir(ours)))
print(json.dumps({name: missing(name) for name in sys.argv[1:]}))
from quorate_torchrun.elastic import metrics, events, timer
class Counted(metrics.MetricHandler):
    def emit(self, metric_data): print(metric_data.group_name, metric_data.name, metric_data.value)
metrics.configure(Counted(), "mine")
metrics.put_metric("steps", 3, "mine")
event = events.Event("name", events.EventSource.WORKER, metadata={"k": 1})
print(events.Event.deserialize(event.serialize()) == event, events.record(event))
from torch.distributed import HashStore
from torch.distributed.elastic import rendezvous
from quorate_torchrun import LaunchConfig, elastic_launch
from quorate_torchrun._errors import as_torch_has_it
class Theirs(rendezvous.RendezvousHandler):
    def get_backend(self): return "theirs"
    def next_rendezvous(self):
        return rendezvous.RendezvousInfo(HashStore(), 0, 1, rendezvous.RendezvousStoreInfo("127.0.0.1", 29500))
    def get_run_id(self): return "job"
    def is_closed(self): return False
    def set_closed(self): pass
    def num_nodes_waiting(self): return 0
    def shutdown(self): return True
rendezvous.rendezvous_handler_registry.register("theirs", lambda params: Theirs())
print(elastic_launch(LaunchConfig(1, 1, 1, rdzv_backend="theirs", start_method="fork"), abs)(-2))
print(timer.FileTimerRequest(1, "scope", 2.0, 9).to_json())
"""


@pytest.mark.needs("torch")
def test_torchs_public_names_are_all_there_and_what_is_torchs_own_works() -> None:
    modules = ("agent.server", "multiprocessing", "multiprocessing.errors", "rendezvous", "rendezvous.registry")
    modules = (*modules, "events", "metrics", "timer", "agent.server.api", "agent.server.local_elastic_agent")
    modules = (*modules, "multiprocessing.errors.error_handler", "multiprocessing.errors.handlers")
    done = subprocess.run(
        [sys.executable, "-c", NAMES, *modules], capture_output=True, text=True, timeout=120, check=True
    )
    names, *rest = done.stdout.splitlines()
    assert json.loads(names) == {name: [] for name in modules}
    assert rest[:3] == ["mine steps 3", "True None", "{0: 2}"]
    assert json.loads(rest[3])["scope_id"] == "scope"


def test_the_page_of_behaviours_names_tests_that_exist() -> None:
    root = Path(__file__).parents[3]
    page = (root / "docs/torchelastic-behaviours.md").read_text()
    named = re.findall(r"^\|.*\| `([\w./]+)(?:::(\w+))?` \|$", page, re.MULTILINE)
    assert len(named) > 60
    for path, test in named:
        place = path.replace("torchrun/", "plugins/torchrun/tests/test_torchrun_") if path[:9] == "torchrun/" else path
        text = (root / place).read_text()
        assert not test or f"def {test}(" in text, (path, test)


# --- multiprocessing ------------------------------------------------------------------------------------------------


def test_a_choice_of_streams_for_each_rank() -> None:
    assert to_map(Std.OUT, 2) == {0: Std.OUT, 1: Std.OUT}
    assert to_map({1: Std.ALL}, 2) == {0: Std.NONE, 1: Std.ALL}
    assert Std.from_str("0:1,1:2") == {0: Std.OUT, 1: Std.ERR}
    with pytest.raises(ValueError, match="streams"):
        Std.from_str("4")


def test_local_ranks_must_be_whole(contexts: list[PContext]) -> None:
    for args, envs in (({0: (), 2: ()}, {0: {}, 2: {}}), ({0: (), 1: ()}, {0: {}})):
        with pytest.raises(ValueError, match="local ranks"):
            start(contexts, "true", args, envs=envs)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_values_of_functions(contexts: list[PContext], method: str) -> None:
    context = start(contexts, twice, {0: (1,), 1: ("b" * 200_000,)}, start_method=method)
    assert isinstance(context, MultiprocessContext)
    assert sorted(context.pids()) == [0, 1]
    result = context.wait()
    assert result == RunProcsResult({0: 2, 1: "b" * 400_000}, {}, {0: "", 1: ""}, {0: "", 1: ""})
    assert not result.is_failed()
    assert context.wait() is result, "asked again"


def test_a_failure_ends_the_others_at_once(contexts: list[PContext], capfd: pytest.CaptureFixture[str]) -> None:
    context = start(contexts, fail_or_wait, {0: (False,), 1: (True,)})
    result = context.wait()
    assert result is not None
    assert result.is_failed()
    assert list(result.failures) == [1]
    failure = result.failures[1]
    assert (failure.exitcode, failure.message) == (1, "ValueError: no luck")
    assert "fail_or_wait" in failure.error_file_data["message"]["extraInfo"]["py_callstack"]
    assert not any(map(is_alive, context.pids().values()))


def test_processes_that_still_run_have_no_result(contexts: list[PContext]) -> None:
    context = start(contexts, sys.executable, {0: ("-c", HANG)})
    assert context.wait(timeout=0) is None
    assert context.wait(timeout=0.05) is None
    context.close()
    assert not any(map(is_alive, context.pids().values()))
    context.close()  # twice


def test_a_thread_may_wait(contexts: list[PContext]) -> None:
    context, results = start(contexts, twice, {0: (1,)}), list[Any]()
    thread = threading.Thread(target=lambda: results.append(context.wait()))
    thread.start()
    thread.join(60)
    assert results[0].return_values == {0: 2}


@pytest.mark.parametrize(
    ("code", "exit_code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)]
)
def test_failures_of_commands(contexts: list[PContext], code: str, exit_code: int) -> None:
    context = start(contexts, sys.executable, {0: ("-c", code), 1: ("-c", HANG)})
    assert isinstance(context, SubprocessContext)
    result = context.wait()
    assert result is not None
    assert {rank: each.exitcode for rank, each in result.failures.items()} == {0: exit_code}


def test_arguments_and_environments_of_commands(contexts: list[PContext], tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['RANK'], os.environ['HOME'])"
    context = start(
        contexts,
        sys.executable,
        {0: ("-c", code, 1, [2])},
        envs={0: {"RANK": "7", "HOME": "here"}},
        logs_specs=DefaultLogsSpecs(str(tmp_path), Std.OUT),
    )
    result = context.wait()
    assert result is not None
    assert result.return_values == {0: None}
    assert Path(result.stdouts[0]).read_text() == "['1', '[2]'] 7 here\n"
    assert result.stderrs == {0: ""}


def test_a_command_that_does_not_exist(contexts: list[PContext]) -> None:
    with pytest.raises(quorate.QuorateError, match="there-is-no-such-program"):
        start(contexts, "there-is-no-such-program", {0: ()})
    assert contexts == []


def test_streams_to_files_to_the_console_and_through_filters(
    contexts: list[PContext], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context = start(
        contexts,
        say,
        {0: ("one",), 1: ("two",)},
        logs_specs=DefaultLogsSpecs(str(tmp_path), redirects={0: Std.ALL}, tee={1: Std.ALL}),
        log_line_prefixes={1: "[second]"},
        duplicate_stdout_filters=["tw"],
    )
    result = context.wait()
    context.close()
    assert result is not None
    assert Path(result.stdouts[0]).read_text() == "one\n"
    assert Path(result.stderrs[1]).read_text() == "two on stderr\n"
    assert capfd.readouterr() == ("[second]two\n", "[second]two on stderr\n")
    (filtered,) = tmp_path.rglob("filtered_stdout.log")
    assert filtered.read_text().strip().endswith("two")


def test_what_is_teed_goes_to_the_streams_that_a_program_has_put_in_place(contexts: list[PContext]) -> None:
    """A notebook does that.  A stream that breaks holds no worker up."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise ValueError("closed")

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(Broken()):
        code = "import sys; print('one'); print('x' * 200_000, file=sys.stderr)"
        context = start(contexts, sys.executable, {0: ("-c", code)}, logs_specs=DefaultLogsSpecs(tee=Std.ALL))
        result = context.wait()
        context.close()
    assert result is not None
    assert not result.is_failed()
    assert output.getvalue() == "[trainer0]:one\n"


def test_a_character_that_such_a_stream_cannot_take_does_not_end_the_output(contexts: list[PContext]) -> None:
    output = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(output, "ascii")):
        code = "print('caf\\u00e9', flush=True); print('more')"
        context = start(contexts, sys.executable, {0: ("-c", code)}, logs_specs=DefaultLogsSpecs(tee=Std.OUT))
        context.wait()
        context.close()
        assert output.getvalue() == b"[trainer0]:caf\\xe9\n[trainer0]:more\n"


def test_a_start_that_fails_leaves_no_process(contexts: list[PContext]) -> None:
    before = children_of(os.getpid())
    with pytest.raises(quorate.StartError):
        start(contexts, lambda: None, {0: ()}, start_method="warm")
    assert children_of(os.getpid()) == before


def test_processes_are_waited_for_whatever_numbers_the_descriptors_have(contexts: list[PContext]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2048, hard)), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < 1024:  # select() takes none from there on
            taken.append(os.open(os.devnull, os.O_RDONLY))
        result = start(contexts, sys.executable, {0: ("-S", "-c", "")}).wait(timeout=1e9)
        contexts.pop().close()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result is not None
    assert not result.is_failed()


def test_signals_raise_while_processes_run(contexts: list[PContext]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    context = start(contexts, sys.executable, {0: ("-c", HANG)})
    with pytest.raises(type(as_torch_has_it(quorate.SignalException("", 1)))) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.sigval == signal.SIGTERM
    context.close(death_sig=signal.SIGKILL, timeout=0)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not any(map(is_alive, context.pids().values()))


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = (
        "import os, sys; from quorate_torchrun.elastic.multiprocessing import DefaultLogsSpecs, start_processes\n"
        "context = start_processes('n', sys.executable, {0: ('-c', 'import time; time.sleep(600)')}, {0: {}},"
        " DefaultLogsSpecs())\n"
        "print(context.pids()[0], flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    assert settles(lambda: not is_alive(int(done.stdout)))


# --- rendezvous -----------------------------------------------------------------------------------------------------


def open_standalone(params: Any) -> Any:
    return quorate.get_rendezvous_handler(RendezvousParameters("standalone", "", params.run_id, 1, 1))


def test_a_registry_of_backends() -> None:
    registry = RendezvousHandlerRegistry()
    registry.register("standalone", open_standalone)
    registry.register("standalone", open_standalone)  # the same again
    with pytest.raises(ValueError, match="another creator"):
        registry.register("standalone", open)
    with pytest.raises(ValueError, match="name"):
        registry.register("", open_standalone)
    assert registry.create_handler(RendezvousParameters("standalone", "", "job", 1, 1)).get_run_id() == "job"
    with pytest.raises(ValueError, match="not registered"):
        registry.create_handler(RendezvousParameters("other", "", "job", 1, 1))
    registry.register("wrong", open_standalone)
    with pytest.raises(quorate.PluginError, match="standalone"):
        registry.create_handler(RendezvousParameters("wrong", "", "job", 1, 1))


def test_what_is_registered_in_this_process_can_be_launched() -> None:
    registered = "mine" in rendezvous_handler_registry
    if not registered:
        rendezvous_handler_registry.register("mine", _open_renamed)
    assert get_rendezvous_handler(RendezvousParameters("mine", "", "job", 1, 1)).get_backend() == "mine"
    assert get_rendezvous_handler(RendezvousParameters("standalone", "", "job", 1, 1)).get_backend() == "standalone"
    config = LaunchConfig(1, 1, 2, rdzv_backend="mine", run_id="job", start_method="fork")
    assert elastic_launch(config, twice)("a") == {0: "aa", 1: "aa"}
    with pytest.raises(quorate.UnknownBackendError, match="not-there"):
        elastic_launch(LaunchConfig(1, 1, 2, rdzv_backend="not-there", run_id="job"), twice)("a")


def _open_renamed(params: Any) -> Any:
    handler = open_standalone(params)
    renamed = type("Renamed", (type(handler),), {"get_backend": lambda self: "mine"})
    return renamed(params)


def test_an_adopted_handler_may_end_a_node_in_peace() -> None:
    assert issubclass(RendezvousGracefulExitError, quorate.RendezvousError)


@pytest.mark.parametrize("arguments", [("", "h", "r", 1, 1), ("b", "h", "r", 0, 1), ("b", "h", "r", 2, 1)])
def test_parameters_without_sense_are_value_errors(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(quorate.UsageError):
        RendezvousParameters(*arguments)


class DictStore(dict[str, bytes]):
    """What is used of torch's store."""

    set = dict.__setitem__
    get = dict.__getitem__


def test_nodes_agree_on_where_their_workers_meet() -> None:
    store = DictStore()
    first = RendezvousStoreInfo.build(0, store, "10.0.0.1")
    assert (first.master_addr, 0 < first.master_port < 65536) == ("10.0.0.1", True)
    assert RendezvousStoreInfo.build(1, store, "10.0.0.2") == first
    assert RendezvousStoreInfo.build(0, store, None, 29500).master_port == 29500


def test_settings_of_parameters() -> None:
    params = RendezvousParameters("b", "h", "r", 1, 2, flag="yes", number="3", word="x")
    assert (params.get("word"), params.get("none", 1), params.get_as_bool("flag"), params.get_as_int("number")) == (
        "x", 1, True, 3,
    )  # fmt: skip
    for read in (params.get_as_bool, params.get_as_int):
        with pytest.raises(ValueError, match="word"):
            read("word")
