"""What is derived from the code says what the code says: the reference pages, and the list of what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import quorate
from quorate import PluginHost, PluginKind
from quorate._discovery import COMMANDS_GROUP, find_plugins
from quorate.cli._reference import PARTS, updated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
#: What is chosen by a name that somebody writes, so that the right package can be named where it is missing.
CHOSEN = (
    PluginKind.CLI_OPTION,
    PluginKind.ENVIRONMENT,
    PluginKind.RENDEZVOUS,
    PluginKind.STARTER,
    PluginKind.ERROR_RECORDER,
    PluginKind.EVENT_SINK,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_of_the_documentation_are_current(page: Path) -> None:
    """``make docs`` writes them anew."""
    text = page.read_text(encoding="utf-8")
    assert updated(text) == text


def test_every_generated_part_is_on_a_page() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in PARTS if texts.count(f"<!-- generated: {name} -->") != 1] == []


def test_known_plugins_are_what_the_distributions_of_this_repository_offer() -> None:
    names = {
        tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]
        for file in ROOT.glob("plugins/*/pyproject.toml")
    }
    offered: dict[tuple[str, str], set[str]] = {}
    for plugin, kind, name in PluginHost().offers():
        if kind in CHOSEN and plugin.found.distribution in names:
            offered.setdefault((plugin.found.distribution, kind.value), set()).add(name)
    for command in find_plugins(group=COMMANDS_GROUP):
        if command.distribution in names:
            offered.setdefault((command.distribution, "command"), set()).add(command.name)
    assert offered, "the distributions of this repository are installed"
    listed: dict[tuple[str, str], set[str]] = {}
    for line in Path(quorate.__file__).with_name("known_plugins.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            package, plugin_kind, words = (part.strip() for part in line.split(":"))
            listed.setdefault((package, plugin_kind), set()).update(words.split())
    assert listed == offered
