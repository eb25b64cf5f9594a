"""Every hook, whatever a plugin answers to it: reported once with the plugin's name, and decided without the plugin.

The hooks are read from ``hookspecs``, so that a new one is tested as soon as it is there.
"""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from core.tests.cli_runs import clean_environment, runs_a_job
from core.tests.odd_answers import DEEDS, fail_with
from core.tests.test_hostile_plugins import install

from quorate import PluginHost, hookimpl, hookspecs
from quorate.catalogue import CliOption, EventSink, HealthCheck, PluginKind, ServiceBackend
from quorate.records import (
    Assignment,
    Cause,
    Event,
    FailureRecord,
    NodeRecord,
    RestartBudget,
    RestartDecision,
    RoundSummary,
    Verdict,
    WorkerLaunch,
)

SECONDS = 120.0
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("quorate_"))
REGISTER, DECIDE, OBSERVE = (
    [name for name in HOOKS if name.startswith(f"quorate_{verb}_")] for verb in ("register", "decide", "observe")
)
LAUNCH = WorkerLaunch(0, 0, "trainer", "true", (), {}, "")
#: Parameter -> an argument.  A hook with a new parameter needs one here.
ARGUMENTS: Mapping[str, Any] = {
    "nodes": [NodeRecord(name, "trainer", 1) for name in "ab"],
    "previous": [],
    "summary": RoundSummary(0, 1, 1, 1, 2, 0),
    "waiting": 1,
    "launch": LAUNCH,
    "assignment": Assignment(0, "a", "trainer", 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1),
    "failure": FailureRecord(0, 0, 1, 1, Cause.EXIT_CODE, "", 0),
    "budget": RestartBudget(0, 1),
    "event": Event("name", "reason"),
}


@pytest.fixture(autouse=True)
def interrupts_are_the_plugins_own() -> Iterator[None]:
    # As while an agent handles SIGINT: Python itself raises no KeyboardInterrupt then.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    yield
    signal.signal(signal.SIGINT, before)


def plugin_of(name: str, deed: Callable[[], Any], *, is_marked: bool = True) -> Any:
    parameters = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
    space: dict[str, Any] = {"deed": deed}
    exec(f"def {name}({parameters}): return deed()", space)
    function = space[name]
    return type("Plugin", (), {name: staticmethod(hookimpl(function) if is_marked else function)})()


def ask(host: PluginHost, name: str) -> Any:
    """Call the hook as quorate does."""
    arguments = [ARGUMENTS[parameter] for parameter in inspect.signature(getattr(hookspecs, name)).parameters]
    if name in REGISTER:
        (kind,) = (kind for kind in PluginKind if kind.hook == name)
        return host.catalogue(kind)
    if name in OBSERVE:
        return host.observe(*arguments)
    return host.decide(name.removeprefix("quorate_decide_"), *arguments)


def test_every_hook_is_called_in_one_of_three_ways() -> None:
    assert sorted([*REGISTER, *DECIDE, *OBSERVE]) == HOOKS
    assert len(HOOKS) >= 14
    assert {kind.hook for kind in PluginKind} == set(REGISTER)


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("name", HOOKS)
def test_a_wrong_answer_is_reported_once_and_the_others_count(name: str, deed: str) -> None:
    sentences: list[str] = []
    good = ask(PluginHost([], (), warn=sentences.append), name)
    assert sentences == []
    host = PluginHost([], (), [("bad", plugin_of(name, DEEDS[deed]))], sentences.append)
    for _ in range(3):
        assert ask(host, name) == good
    if name in OBSERVE and not deed.startswith(("SystemExit", "Keyboard", "ValueError", "an exception", "a deep")):
        assert sentences == []  # an observer's answer is ignored
        return
    (sentence,) = sentences
    assert "bad" in sentence
    assert name in sentence or name in OBSERVE
    assert sentence.isprintable()
    assert len(sentence) < 1500


@pytest.mark.parametrize("name", HOOKS)
def test_a_function_without_the_mark_is_reported_and_not_called(name: str) -> None:
    sentences: list[str] = []
    plugin = plugin_of(name, lambda: fail_with(AssertionError()), is_marked=False)
    host = PluginHost([], (), [("bad", plugin)], sentences.append)
    ask(host, name)
    assert len(sentences) == 1
    assert f"does not mark {name} as hooks" in sentences[0]
    assert host.loaded == []


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("ranks", ["a"]),
        ("ranks", ["a", "a"]),
        ("ranks", ["a", "b", "c"]),
        ("ranks", []),
        ("ranks", ARGUMENTS["nodes"]),
        ("ranks", range(2)),
        ("rescale", 1),
        ("launch", evolve(LAUNCH, local_rank=1)),
        ("launch", evolve(LAUNCH, rank=1)),
        ("launch", evolve(LAUNCH, environment={"A": 1})),
        ("launch", evolve(LAUNCH, environment={"A": "\0"})),
        ("launch", evolve(LAUNCH, environment={"A": "\ud800"})),
        ("launch", evolve(LAUNCH, environment={"A": "x" * (1 << 17)})),
        (
            "launch",
            evolve(LAUNCH, environment={"A": "\u00e9" * ((1 << 16) - 1)}),
        ),  # with name and "=" too long, in bytes
        ("launch", evolve(LAUNCH, environment={"A=": "x"})),
        ("launch", evolve(LAUNCH, environment=None)),
        ("launch", evolve(LAUNCH, entrypoint="")),
        ("launch", evolve(LAUNCH, entrypoint="a\0")),
        ("launch", evolve(LAUNCH, error_file="\ud800")),
        ("launch", evolve(LAUNCH, entrypoint=None)),
        ("launch", evolve(LAUNCH, args="ab")),
        ("launch", evolve(LAUNCH, args=(1,))),
        ("launch", evolve(LAUNCH, args=("\0",))),
        ("launch", evolve(LAUNCH, logs=None)),
        ("launch", evolve(LAUNCH, cpus=frozenset({"0"}))),
        ("launch", evolve(LAUNCH, memory_node=-1)),
        ("launch", evolve(LAUNCH, error_file=None)),
        ("cause", "exception"),
        ("cause", Cause.SUCCEEDED),
        ("cause", Cause.NODE_LOST),
        ("restart", Verdict.RESTART),
        ("restart", RestartDecision(Verdict.SUCCEEDED)),
    ],
)
def test_an_answer_of_the_right_type_and_a_wrong_value_is_refused(question: str, answer: Any) -> None:
    sentences: list[str] = []
    name = f"quorate_decide_{question}"
    extra = [("bad", plugin_of(name, lambda: answer)), ("good", plugin_of(name, lambda: None))]
    host = PluginHost([], (), extra, sentences.append)
    default = ask(PluginHost([], ()), name)
    assert ask(host, name) == ask(host, name) == default
    assert len(sentences) == 1
    assert f"plugin bad: {name} answered" in sentences[0]


class _ReadOnce(Mapping[str, str]):
    """Raises when it is read again."""

    def __init__(self, content: Mapping[str, str]) -> None:
        self._content, self._reads = content, 0

    def __getitem__(self, name: str) -> str:
        return self._content[name]

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Iterator[str]:
        self._reads += 1
        if self._reads > 1:
            raise SystemExit(9)
        return iter(self._content)


class _Endless(Sequence[str]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: Any) -> Any:
        return "ab"[place % 2]


def test_an_answer_is_read_once_and_a_copy_of_it_used() -> None:
    sentences: list[str] = []
    answer = evolve(LAUNCH, environment=_ReadOnce({"A": "b"}), cpus=[0])
    host = PluginHost([], (), [("lazy", plugin_of("quorate_decide_launch", lambda: answer))], sentences.append)
    taken = ask(host, "quorate_decide_launch")
    assert (dict(taken.environment), dict(taken.environment), taken.cpus) == ({"A": "b"}, {"A": "b"}, frozenset({0}))
    assert sentences == []


def test_an_answer_that_never_ends_is_refused() -> None:
    sentences: list[str] = []
    host = PluginHost([], (), [("bad", plugin_of("quorate_decide_ranks", _Endless))], sentences.append)
    assert sorted(ask(host, "quorate_decide_ranks")) == ["a", "b"]
    assert len(sentences) == 1
    assert "does not name each node once" in sentences[0]


def test_what_is_said_of_a_wrong_environment_is_the_wrong_variable_alone() -> None:
    sentences: list[str] = []
    answer = evolve(LAUNCH, environment={"API_KEY": "secret", "PORT": 1})
    host = PluginHost([], (), [("bad", plugin_of("quorate_decide_launch", lambda: answer))], sentences.append)
    ask(host, "quorate_decide_launch")
    assert "'PORT' of type int" in sentences[0]
    assert "secret" not in sentences[0]


#: Wrong types are what is tested.
OFFERS: Sequence[Callable[[], Any]] = (
    lambda: EventSink("", "s", print),
    lambda: EventSink(["x"], "s", print),  # type: ignore[arg-type]
    lambda: EventSink("x\n", "s", print),
    lambda: EventSink("x", None, print),  # type: ignore[arg-type]
    lambda: EventSink("x", "s", None),  # type: ignore[arg-type]
    lambda: HealthCheck("x", "s", str, "1"),  # type: ignore[arg-type]
    lambda: HealthCheck("x", "s", str, float("nan")),
    lambda: ServiceBackend("x", "s", 3),  # type: ignore[arg-type]
    lambda: CliOption("x", 3),  # type: ignore[arg-type]
    lambda: CliOption("x", "h", 3),  # type: ignore[arg-type]
    lambda: CliOption("x", "h", None, None),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_that_cannot_be_used_is_refused_where_it_is_made(offer: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        offer()


# --- whole jobs -------------------------------------------------------------------------------------------------------

PLUGIN = """
from quorate import StarterBackend, hookimpl, hookspecs

def answer(*arguments):
    {deed}
"""
HOOK = """
@hookimpl
def {name}({parameters}):
    return answer()
"""


def run_with_plugin(
    folder: Path, source: str, *flags: str, script: str, rendezvous: Sequence[str] = ("--standalone",)
) -> subprocess.CompletedProcess[str]:
    install(folder / "plugins", "aaa", source)
    (folder / "train.py").write_text(script)
    return subprocess.run(
        [str(Path(sys.executable).with_name("quorate")), "run", *rendezvous, *flags, str(folder / "train.py")],
        env=clean_environment(PYTHONPATH=str(folder / "plugins"), OUT=str(folder / "done")),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@runs_a_job
@pytest.mark.parametrize("deed", ["return 3", "raise SystemExit(70)", "yield 1; raise SystemExit(0)"])
def test_a_job_goes_on_although_a_plugin_answers_every_hook_wrongly(tmp_path: Path, deed: str) -> None:
    source = PLUGIN.format(deed=deed) + "".join(
        HOOK.format(name=name, parameters=", ".join(inspect.signature(getattr(hookspecs, name)).parameters))
        for name in HOOKS
    )
    script = "import os\nif not os.path.exists(os.environ['OUT']): open(os.environ['OUT'], 'w'); raise SystemExit(5)"
    done = run_with_plugin(tmp_path, source, "--max-restarts=1", script=script)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug in quorate" not in done.stderr
    for name in HOOKS:
        assert done.stderr.count(f"{name} ") <= 1, done.stderr
    for name in ("register_starter", "register_service", "decide_launch", "decide_cause", "decide_restart"):
        assert f"quorate_{name} " in done.stderr, done.stderr


#: Environments are read once, and a plugin that forks has one agent all the same.
UNRULY = """
import os
from collections.abc import Mapping
from quorate import ServiceBackend, hookimpl

class Once(Mapping):
    reads = 0
    def __getitem__(self, name): return "1"
    def __len__(self): return 1
    def __iter__(self):
        self.reads += 1
        if self.reads > 1: raise SystemExit(9)
        return iter(["ONCE"])

class Service:
    worker_environment = Once()
    def observe(self, event): forks("service")
    def close(self): pass

done = set()
def forks(where):
    if where not in done:
        done.add(where)
        os.fork()

forks("import")

@hookimpl
def quorate_register_service():
    forks("register")
    return [ServiceBackend("once", "forks", lambda view: forks("start") or Service())]

@hookimpl
def quorate_decide_launch(launch, assignment): forks("decide")

@hookimpl
def quorate_observe_event(event): forks("observe")
"""


@runs_a_job
def test_a_job_runs_once_though_plugins_fork_the_agent(tmp_path: Path) -> None:
    script = "import os\nopen(os.environ['OUT'], 'a').write(os.environ['ONCE'])"
    done = run_with_plugin(tmp_path, UNRULY, script=script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "1"
    assert done.stderr.count("a plugin has forked this process, and the copy that went on is ended") == 6, done.stderr


STARTER = """
class Context:
    def __init__(self):
        import os
        self.descriptor = os.eventfd(0)
    def fileno(self): return self.descriptor
    def wake_at(self): return 0.0
    def advance(self, now): return []
    def is_gone(self): return True
    def pids(self): return {}
    def stop(self, *arguments): pass
    def close(self): pass
class Starter:
    def start(self, launches): return CONTEXT
@hookimpl
def quorate_register_starter():
    return [StarterBackend("odd", "is wrong", "any", lambda request: STARTER)]
"""


@runs_a_job
@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("STARTER = 3; CONTEXT = None", "'odd'|'int' object has no attribute 'start'"),
        ("STARTER = Starter(); CONTEXT = 3", "'odd' answered 3, which is not a process context"),
        ("STARTER = Starter(); Context.pids = lambda self: 3; CONTEXT = Context()", r"'odd': pids\(\) answered 3"),
        ("STARTER = Starter(); Context.wake_at = lambda self: 'x'; CONTEXT = Context()", r"wake_at\(\) answered 'x'"),
        ("STARTER = Starter(); Context.advance = lambda self, now: [3]; CONTEXT = Context()", r"advance\(\) answered"),
        ("STARTER = Starter(); Context.advance = lambda self, now: 1 / 0; CONTEXT = Context()", r"advance\(\) raised"),
        ("STARTER = Starter(); Context.fileno = lambda self: exit(0); CONTEXT = Context()", r"fileno\(\) raised"),
    ],
)
def test_a_start_method_that_breaks_its_contract_is_named(tmp_path: Path, made: str, named: str) -> None:
    source = PLUGIN.format(deed="pass") + STARTER + made
    done = run_with_plugin(tmp_path, source, "--start-method=odd", script="")
    assert done.returncode in (1, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert "bug in quorate" not in done.stderr
    assert re.search(named, done.stderr), done.stderr
