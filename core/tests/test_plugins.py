"""``PluginHost`` and ``quorate plugins`` against trees of installed distributions made for each test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from core.tests.conftest import GOOD, Tree, deciding, names

from quorate import PluginError, UnknownBackendError, hookimpl
from quorate._discovery import find_plugins
from quorate.catalogue import EventSink, PluginKind
from quorate.cli._plugins import describe
from quorate.errors import DuplicatePluginError
from quorate.records import (
    Event,
)

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


def test_a_second_entry_point_for_one_plugin_is_named_and_the_first_one_counts(tree: Tree) -> None:
    tree.install("one-plug", "from quorate import hookimpl\n@hookimpl\ndef quorate_observe_event(event): ...\n")
    entry_points = tree.folder / "one_plug-1.5.dist-info" / "entry_points.txt"
    for names_in_it, loaded in ((("a", "b"), ["b"]), (("a", "a"), ["a"])):
        entry_points.write_text("[quorate]\n" + "".join(f"{name} = one_plug\n" for name in names_in_it))
        tree.sentences.clear()
        host = tree.host()
        assert names(host) == loaded
        assert host.has_observers()
        (sentence,) = tree.sentences
        assert sentence.endswith(f"{loaded[0]} (one-plug) is the same; remove one of the two entry points")


def test_a_plugin_whose_error_has_no_text_is_listed(tree: Tree) -> None:
    tree.install("odd-plug", "class E(Exception):\n    def __str__(self): raise SystemExit(9)\nraise E\n")
    result = run_plugins(tree, "plugins")
    assert result.returncode == 4
    assert "broken: odd-plug (odd-plug 1.5): E: its text cannot be read" in result.stdout
