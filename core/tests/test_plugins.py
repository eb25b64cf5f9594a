"""``PluginHost`` and ``quorate plugins`` against trees of installed distributions made for each test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from quorate import PluginError, PluginHost, QuorateError, UnknownBackendError, hookimpl
from quorate._discovery import find_plugins
from quorate.catalogue import EventSink, PluginKind
from quorate.cli._plugins import describe
from quorate.errors import DuplicatePluginError
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

GOOD = """
from quorate import hookimpl
from quorate.catalogue import EventSink

class plugin:
    @staticmethod
    @hookimpl
    def quorate_register_event_sink():
        return [EventSink({sink!r}, "a sink", lambda event: None)]
"""


class Tree:
    """A folder of installed distributions, on ``sys.path`` for as long as the test runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sentences: list[str] = []

    def install(self, distribution: str, source: str, name: str = "", group: str = "quorate") -> None:
        """Install a distribution with one module and one entry point."""
        module = distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[{group}]\n{name or distribution} = {module}:plugin\n")

    def host(self, **others: Any) -> PluginHost:
        return PluginHost([str(self.folder)], warn=self.sentences.append, **others)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("QUORATE_DISABLE_PLUGINS", raising=False)
    before = set(sys.modules)
    yield Tree(tmp_path)
    # The next test's modules have the same names.
    for name in set(sys.modules) - before:
        if name.endswith("_plug"):
            del sys.modules[name]


def names(host: PluginHost) -> list[str]:
    return [plugin.found.name for plugin in host.loaded]


# --- finding ----------------------------------------------------------------------------------------------------------


def test_plugins_are_found_sorted_with_their_distribution_and_version(tree: Tree) -> None:
    tree.install("zeta-plug", GOOD.format(sink="z"))
    tree.install("alpha-plug", GOOD.format(sink="a"))
    tree.install("foreign-plug", GOOD.format(sink="f"), group="somebody.else")
    host = tree.host()
    assert names(host) == ["alpha-plug", "zeta-plug"]
    assert (host.loaded[0].found.distribution, host.loaded[0].found.version) == ("alpha-plug", "1.5")
    assert sorted(host.catalogue(PluginKind.EVENT_SINK)) == ["a", "z"]
    assert host.digest() == "alpha-plug=1.5,zeta-plug=1.5"
    assert tree.sentences == []


def test_a_distribution_earlier_on_the_path_hides_the_same_one_later(tmp_path: Path) -> None:
    for place, target in (("first", "one"), ("second", "two")):
        info = tmp_path / place / "the_plug-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "entry_points.txt").write_text(f"# ours\n[other]\nx = y\n[quorate]\nplug = {target}:plugin # why\n")
    found = find_plugins([str(tmp_path / "first"), str(tmp_path / "absent"), str(tmp_path / "second")])
    assert [(plugin.name, plugin.target) for plugin in found] == [("plug", "one:plugin")]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_plugin_that_does_not_import_is_reported_with_its_error_and_the_others_load(tree: Tree) -> None:
    tree.install("bad-plug", "import no_such_module_anywhere\n")
    tree.install("good-plug", GOOD.format(sink="good"))
    host = tree.host()
    assert names(host) == ["good-plug"]
    (broken,) = host.broken
    assert isinstance(broken.error, ModuleNotFoundError)
    (sentence,) = tree.sentences
    assert "bad-plug" in sentence
    assert "no_such_module_anywhere" in sentence


def test_a_broken_plugin_is_fatal_only_if_its_name_is_asked_for(tree: Tree) -> None:
    tree.install("bad-plug", "raise RuntimeError('half installed')\n", name="pigeon")
    tree.install("good-plug", GOOD.format(sink="good"))
    host = tree.host()
    assert host.choose(PluginKind.EVENT_SINK, "good").name == "good"
    with pytest.raises(PluginError, match=r"'pigeon'.*bad-plug 1\.5.*half installed"):
        host.choose(PluginKind.EVENT_SINK, "pigeon")
    with pytest.raises(UnknownBackendError, match=r"'owl'; installed: good\. Run 'quorate plugins'"):
        host.choose(PluginKind.EVENT_SINK, "owl")


def test_a_misspelt_hook_breaks_its_plugin(tree: Tree) -> None:
    tree.install(
        "typo-plug",
        "from quorate import hookimpl\nclass plugin:\n    @staticmethod\n    @hookimpl\n"
        "    def quorate_register_rendezvuos():\n        return []\n",
    )
    host = tree.host()
    assert names(host) == []
    assert "quorate_register_rendezvuos" in tree.sentences[0]
    assert "docs/hooks.md" in tree.sentences[0]


def test_an_implementation_with_an_unknown_argument_breaks_its_plugin(tree: Tree) -> None:
    tree.install(
        "arg-plug",
        "from quorate import hookimpl\nclass plugin:\n    @staticmethod\n    @hookimpl\n"
        "    def quorate_decide_cause(failure, colour):\n        return None\n",
    )
    host = tree.host()
    assert names(host) == []
    assert "colour" in tree.sentences[0]


def test_two_distributions_with_one_name_are_an_error_that_names_both(tree: Tree) -> None:
    tree.install("one-plug", GOOD.format(sink="same"))
    tree.install("two-plug", GOOD.format(sink="same"))
    with pytest.raises(DuplicatePluginError) as caught:
        tree.host().choose(PluginKind.EVENT_SINK, "same")
    assert all(
        word in str(caught.value) for word in ("one-plug 1.5", "two-plug 1.5", "QUORATE_DISABLE_PLUGINS=two-plug")
    )
    assert tree.host(disabled=["two-plug"]).choose(PluginKind.EVENT_SINK, "same").name == "same"


def test_a_register_hook_that_raises_loses_only_its_own_offers(tree: Tree) -> None:
    tree.install(
        "raise-plug",
        "from quorate import hookimpl\nclass plugin:\n    @staticmethod\n    @hookimpl\n"
        "    def quorate_register_event_sink():\n        raise OSError('no disk')\n",
    )
    tree.install("good-plug", GOOD.format(sink="good"))
    host = tree.host()
    assert list(host.catalogue(PluginKind.EVENT_SINK)) == ["good"]
    assert "no disk" in tree.sentences[0]


@pytest.mark.parametrize("name", ["short", "long-plug"])
def test_a_plugin_is_disabled_by_entry_point_or_distribution(
    tree: Tree, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.install("long-plug", "raise RuntimeError('never imported')\n", name="short")
    monkeypatch.setenv("QUORATE_DISABLE_PLUGINS", f" other , {name} ")
    host = tree.host()
    assert (names(host), host.broken, tree.sentences) == ([], [], [])
    assert host.disabled == {"other", name}


def test_what_is_disabled_is_not_offered_for_installation(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.install("quorate-rendezvous-etcd", "", name="rendezvous-etcd")
    monkeypatch.setenv("QUORATE_DISABLE_PLUGINS", "rendezvous-etcd")
    with pytest.raises(UnknownBackendError, match=r"leaves out quorate-rendezvous-etcd .*; remove it from there"):
        tree.host().choose(PluginKind.RENDEZVOUS, "etcd")


def test_a_flag_with_the_name_of_one_of_the_core_is_reported_with_its_plugin(tree: Tree) -> None:
    source = "import sys\nfrom quorate import CliOption, hookimpl\nplugin = sys.modules[__name__]\n"
    source += "@hookimpl\ndef quorate_register_cli_options():\n    return [CliOption('nnodes', 'help')]\n"
    tree.install("bold-plug", source, name="bold")
    text, is_healthy = describe(tree.host())
    assert not is_healthy
    assert "bold-plug 1.5 (bold) offers the flag --nnodes, which is one of quorate's own" in text


@pytest.mark.parametrize(
    ("kind", "name", "package"),
    [
        (PluginKind.RENDEZVOUS, "etcd", "quorate-rendezvous-etcd"),
        (PluginKind.RENDEZVOUS, "c10d", "quorate-rendezvous-c10d"),
        (PluginKind.STARTER, "spawn", "quorate-process-local"),
        (PluginKind.ERROR_RECORDER, "file", "quorate-errors"),
    ],
)
def test_a_missing_name_of_ours_comes_with_the_command_that_installs_it(
    tree: Tree, kind: PluginKind, name: str, package: str
) -> None:
    with pytest.raises(UnknownBackendError, match=rf"installed: none\. Install it with: pip install {package}$"):
        tree.host().choose(kind, name)


def test_a_plugin_is_not_blamed_for_a_name_that_its_own_name_only_contains(tree: Tree) -> None:
    tree.install("bad-plug", "raise RuntimeError('half installed')\n", name="c10d-fork")
    with pytest.raises(UnknownBackendError, match="pip install quorate-rendezvous-c10d"):
        tree.host().choose(PluginKind.RENDEZVOUS, "c10d")


def test_an_unmarked_hook_breaks_its_plugin(tree: Tree) -> None:
    tree.install("mute-plug", "class plugin:\n    @staticmethod\n    def quorate_decide_cause(failure): ...\n")
    host = tree.host()
    assert names(host) == []
    assert "mute-plug" in tree.sentences[0]
    assert "put @quorate.hookimpl before each" in tree.sentences[0]


def test_a_plugin_that_does_not_fit_leaves_none_of_its_hooks_behind(tree: Tree) -> None:
    source = (
        "from quorate import hookimpl\nclass plugin:\n    @staticmethod\n    @hookimpl\n"
        "    def quorate_observe_event(event):\n        raise RuntimeError('called')\n"
        "    @staticmethod\n    @hookimpl\n    def quorate_observe_nothing(event): ...\n"
    )
    tree.install("half-plug", source)
    host = tree.host()
    assert not host.has_observers()
    host.observe(Event("one", "because"))
    assert len(tree.sentences) == 1


@pytest.mark.parametrize("answer", ["[7]", "7", "'file'", "[None]"])
def test_an_offer_of_the_wrong_type_breaks_its_plugin_and_no_other(tree: Tree, answer: str) -> None:
    tree.install(
        "odd-plug",
        "from quorate import hookimpl\nclass plugin:\n    @staticmethod\n    @hookimpl\n"
        f"    def quorate_register_event_sink():\n        return {answer}\n",
    )
    tree.install("good-plug", GOOD.format(sink="good"))
    host = tree.host()
    assert list(host.catalogue(PluginKind.EVENT_SINK)) == ["good"]
    assert "odd-plug" in tree.sentences[0]
    assert "EventSink" in tree.sentences[0]


# --- pluggy's own options -----------------------------------------------------------------------------------------


def test_a_wrapper_may_change_what_others_offer(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_register_event_sink(self) -> Iterator[Any]:
            offered = yield
            return [[evolve(sink, summary="wrapped") for sink in sinks] for sinks in offered]

    tree.install("good-plug", GOOD.format(sink="good"))
    host = tree.host(extra=[("wrapper", Wrapper())])
    assert host.choose(PluginKind.EVENT_SINK, "good").summary == "wrapped"
    assert [plugin.found.name for plugin, _, _ in host.offers()] == ["good-plug"]


def test_a_wrapper_may_overrule_a_decision(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_decide_rescale(self, summary: RoundSummary) -> Iterator[Any]:
            answer = yield
            return not answer

    host = tree.host(extra=[("a", deciding(lambda: True)), ("wrapper", Wrapper())])
    assert host.decide("rescale", RoundSummary(1, 2, 2, 1, 2, 0), 1) is False


@pytest.mark.parametrize(("option", "order"), [("tryfirst", ["b", "a", "c"]), ("trylast", ["a", "c", "b"])])
def test_an_observer_may_ask_to_be_called_first_or_last(tree: Tree, option: str, order: list[str]) -> None:
    heard: list[str] = []

    def observer(name: str, **options: bool) -> tuple[str, Any]:
        class Plugin:
            @hookimpl(**options)
            def quorate_observe_event(self) -> None:
                heard.append(name)

        return name, Plugin()

    host = tree.host(extra=[observer("a"), observer("b", **{option: True}), observer("c")])
    host.observe(Event("one", "because"))
    assert heard == order


# --- deciding and observing -------------------------------------------------------------------------------------------


def deciding(answer: Callable[[], bool | None]) -> Any:
    class Plugin:
        @hookimpl
        def quorate_decide_rescale(self, summary: RoundSummary) -> bool | None:
            return answer()

    return Plugin()


def test_the_first_answer_in_alphabetical_order_wins_and_the_core_answers_last(tree: Tree) -> None:
    summary = RoundSummary(1, 2, 2, 1, 2, 0)
    asked: list[str] = []

    def answering(name: str, value: bool | None) -> tuple[str, Any]:
        def answer() -> bool | None:
            asked.append(name)
            return value

        return name, deciding(answer)

    host = tree.host(extra=[answering("c", False), answering("a", None), answering("b", True)])
    assert host.decide("rescale", summary, 1) is True
    assert asked == ["a", "b"]
    full = tree.host()
    assert full.decide("rescale", summary, 1) is False
    assert full.decide("rescale", RoundSummary(1, 1, 1, 1, 2, 0), 1) is True


ROUND = RoundSummary(1, 1, 1, 1, 2, 0)
NODES = [NodeRecord("a", "r", 1), NodeRecord("b", "r", 1)]
LAUNCH = WorkerLaunch(0, 0, "r", "true", (), {}, "")
ASSIGNMENT = Assignment(0, "a", "r", 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1)
FAILURE = FailureRecord(0, 0, 7, -9, Cause.SIGNAL, "killed", 0)


def raising() -> Any:
    raise OSError("scheduler gone")


def test_a_decision_that_raises_is_reported_once_and_the_next_plugin_is_asked(tree: Tree) -> None:
    """Both plugins have the same code, and the second one would raise if it were not asked on its own."""
    asked: list[str] = []

    def answer() -> bool:
        asked.append("b")
        return False

    host = tree.host(extra=[("a", deciding(raising)), ("b", deciding(answer))])
    assert host.decide("rescale", ROUND, 1) is False
    assert host.decide("rescale", ROUND, 1) is False
    assert asked == ["b", "b"]
    assert tree.sentences == [
        "plugin a: quorate_decide_rescale raised OSError: scheduler gone; the decision is made without it"
    ]
    assert list(host.misbehaving) == [("a", "quorate_decide_rescale")]


def test_the_cores_own_answer_is_always_left(tree: Tree) -> None:
    host = tree.host(extra=[(name, deciding(raising)) for name in ("a", "b", "c")])
    assert host.decide("rescale", ROUND, 1) is True
    assert [sentence.split()[1] for sentence in tree.sentences] == ["a:", "b:", "c:"]


def test_a_default_is_the_answer_where_nobody_else_gives_one(tree: Tree) -> None:
    class Raises:
        @hookimpl
        def quorate_decide_launch(self) -> Any:
            raise OSError("no NUMA here")

    host = tree.host(extra=[("a", Raises())])
    assert host.decide_or(LAUNCH, "launch", LAUNCH, ASSIGNMENT) is LAUNCH
    assert "no NUMA here" in tree.sentences[0]


def test_what_the_core_raises_is_raised(tree: Tree) -> None:
    """A duplicate node rank is the caller's mistake, whatever plugins think of it."""
    twins = [evolve(node, rank_hint=0) for node in NODES]

    class Silent:
        @hookimpl
        def quorate_decide_ranks(self) -> None:
            return None

    with pytest.raises(QuorateError):
        tree.host(extra=[("a", Silent())]).decide("ranks", twins, [])


def test_a_wrapper_that_raises_is_left_out_and_the_wrapped_answer_counts(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_decide_rescale(self) -> Iterator[Any]:
            yield
            raise OSError("after")

    host = tree.host(extra=[("a", deciding(lambda: False)), ("wrapper", Wrapper())])
    assert host.decide("rescale", ROUND, 1) is False
    assert list(host.misbehaving) == [("wrapper", "quorate_decide_rescale")]


def test_one_that_raises_within_a_wrapper_is_told_from_the_wrapper(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_decide_rescale(self) -> Iterator[Any]:
            answer = yield
            return not answer

    host = tree.host(extra=[("a", deciding(raising)), ("wrapper", Wrapper())])
    assert host.decide("rescale", ROUND, 1) is False, "the core says yes, the wrapper turns it round"
    assert list(host.misbehaving) == [("a", "quorate_decide_rescale")]


def test_the_plugin_that_raises_is_found_where_two_share_one_function(tree: Tree) -> None:
    """A traceback tells functions apart, not which of two plugins one of them was called for."""
    calls: list[str] = []

    def shared(summary: RoundSummary) -> bool:
        calls.append("call")
        return bool(raising())

    plugins = [type(name, (), {"quorate_decide_rescale": staticmethod(hookimpl(shared))}) for name in ("A", "B")]
    host = tree.host(extra=[("a", plugins[0]), ("b", plugins[1])])
    assert host.decide("rescale", ROUND, 1) is True
    assert [name for name, _ in host.misbehaving] == ["a", "b"]


@pytest.mark.parametrize(
    ("question", "arguments", "wrong", "default"),
    [
        ("ranks", (NODES, ["a", "b"]), ["a"], ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), ["a", "a"], ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), [1, 2], ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), "ab", ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), 7, ["a", "b"]),
        ("rescale", (ROUND, 1), "no", True),
        ("rescale", (ROUND, 1), 0, True),
        ("launch", (LAUNCH, ASSIGNMENT), "numactl", None),
        ("launch", (LAUNCH, ASSIGNMENT), evolve(LAUNCH, local_rank=1), None),
        ("cause", (FAILURE,), "signal", Cause.SIGNAL),
        ("restart", (FAILURE, RestartBudget(0, 0)), Verdict.RESTART, Verdict.FAILED),
        ("restart", (FAILURE, RestartBudget(0, 0)), True, Verdict.FAILED),
    ],
)
@pytest.mark.parametrize("by_wrapper", [False, True])
def test_an_answer_of_the_wrong_type_is_reported_and_the_next_one_counts(
    tree: Tree, question: str, arguments: tuple[Any, ...], wrong: Any, default: Any, by_wrapper: bool
) -> None:
    hook = f"quorate_decide_{question}"

    def answer() -> Any:
        return wrong

    def wrap() -> Iterator[Any]:
        yield
        return wrong

    marked = hookimpl(wrapper=True)(wrap) if by_wrapper else hookimpl(answer)
    host = tree.host(extra=[("odd", type("Plugin", (), {hook: staticmethod(marked)}))])
    for _ in range(2):
        found = host.decide(question, *arguments)
        assert getattr(found, "verdict", found) == default
    (sentence,) = tree.sentences
    assert sentence.startswith(f"plugin odd: {hook} answered ")


@pytest.mark.parametrize("decision", [("restart",), (Verdict.RESTART, 7), (Verdict.RESTART, "", float("inf"))])
def test_a_restart_decision_checks_itself(decision: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        RestartDecision(*decision)


def test_an_observer_that_raises_is_reported_once_and_not_called_again(tree: Tree) -> None:
    heard: list[str] = []

    class Bad:
        @hookimpl
        def quorate_observe_event(self, event: Event) -> None:
            raise OSError("disk full")

    class Good:
        @hookimpl
        def quorate_observe_event(self, event: Event) -> None:
            heard.append(event.name)

    host = tree.host(extra=[("bad", Bad()), ("good", Good())])
    assert host.has_observers()
    assert not tree.host().has_observers()
    for name in ("one", "two"):
        host.observe(Event(name, "because"))
    assert heard == ["one", "two"]
    assert len(tree.sentences) == 1
    assert "disk full" in tree.sentences[0]


# --- quorate plugins --------------------------------------------------------------------------------------------------


def test_the_table_shows_offers_hooks_and_what_is_wrong(tree: Tree) -> None:
    tree.install("good-plug", GOOD.format(sink="good"))
    tree.install("bad-plug", "raise RuntimeError('half\\ninstalled')\n")
    text, healthy = describe(tree.host(disabled=["quiet"], extra=[("own", deciding(lambda: None))]))
    assert not healthy
    lines = text.splitlines()
    assert lines[1].split() == ["good-plug", "good-plug", "1.5", "event", "log", "handler:", "good"]
    assert lines[2].split() == ["own", "-", "-", "decide_rescale"]
    assert lines[3] == "disabled by QUORATE_DISABLE_PLUGINS: quiet"
    assert lines[4] == "broken: bad-plug (bad-plug 1.5): RuntimeError: half installed"
    assert len(lines) == 5


def test_the_table_survives_a_conflict(tree: Tree) -> None:
    tree.install("one-plug", GOOD.format(sink="same"))
    tree.install("two-plug", GOOD.format(sink="same"))
    text, healthy = describe(tree.host())
    assert not healthy
    assert "conflict: event log handler 'same' is offered twice" in text
    assert "one-plug" in text.splitlines()[1]


def test_no_plugins_at_all_come_with_a_remedy(tree: Tree) -> None:
    assert describe(tree.host()) == ("no plugins are installed; install the usual ones: pip install quorate", True)


def test_extra_plugins_of_a_program_are_offered_like_installed_ones(tree: Tree) -> None:
    class Own:
        @hookimpl
        def quorate_register_event_sink(self) -> list[EventSink]:
            return [EventSink("own", "mine", lambda event: None)]

    assert tree.host(extra=[("own", Own())]).choose(PluginKind.EVENT_SINK, "own").summary == "mine"


def run_plugins(tree: Tree, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("QUORATE_", "PET_"))}
    return subprocess.run(
        [sys.executable, "-m", "quorate", *argv],
        env={**own, "PYTHONPATH": str(tree.folder), **environment},
        capture_output=True,
        text=True,
        timeout=60.0,
    )


@pytest.mark.needs("quorate-rendezvous-static")
def test_the_command_shows_the_installed_plugins(tree: Tree) -> None:
    result = run_plugins(tree, "plugins")
    assert (result.returncode, result.stderr) == (0, "")
    assert "rendezvous backend: standalone, static" in result.stdout


def test_the_command_returns_4_where_a_plugin_is_broken(tree: Tree) -> None:
    tree.install("bad-plug", "raise RuntimeError('half installed')\n")
    result = run_plugins(tree, "plugins")
    assert (result.returncode, result.stderr) == (4, "")
    assert "broken: bad-plug (bad-plug 1.5): RuntimeError: half installed" in result.stdout
    healthy = run_plugins(tree, "plugins", QUORATE_DISABLE_PLUGINS="bad-plug")
    assert healthy.returncode == 0
    assert "disabled by QUORATE_DISABLE_PLUGINS: bad-plug" in healthy.stdout


@pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")
def test_a_job_runs_beside_a_broken_plugin_and_says_so_but_not_through_it(tree: Tree) -> None:
    """A plugin that does not import."""
    tree.install("bad-plug", "import no_such_module_anywhere\n", name="pigeon")
    beside = run_plugins(tree, "run", "--no-python", "true")
    assert beside.returncode == 0
    assert "no_such_module_anywhere" in beside.stderr
    through = run_plugins(tree, "run", "--rdzv-backend=pigeon", "--no-python", "true")
    assert through.returncode == 4
    assert "quorate: error: rendezvous backend 'pigeon' belongs to bad-plug 1.5" in through.stderr
    assert "Traceback" not in through.stderr


def test_two_plugins_with_one_flag_give_exit_code_4(tree: Tree) -> None:
    option = (
        "from quorate import hookimpl, CliOption\nclass plugin:\n    @staticmethod\n    @hookimpl\n"
        "    def quorate_register_cli_options():\n        return [CliOption('cells', 'how many')]\n"
    )
    tree.install("one-plug", option)
    alone = run_plugins(tree, "run", "--show-config", PET_CELLS="3")
    assert any(line.split() == ["--cells", "3", "environment", "PET_CELLS"] for line in alone.stdout.splitlines())
    tree.install("two-plug", option)
    both = run_plugins(tree, "run", "--cells=3", "--no-python", "true")
    assert both.returncode == 4
    assert "'cells' is offered twice" in both.stderr
