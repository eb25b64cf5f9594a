"""What the core's tests share: a folder of installed plugins, a script, and an environment without a job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core.tests.cli_runs import clean_environment

from quorate import PluginHost, hookimpl
from quorate.plugins import find_plugins
from quorate.records import (
    RoundSummary,
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


@pytest.fixture(scope="session")
def installed_plugins() -> str:
    """What ``QUORATE_DISABLE_PLUGINS`` has to be so that no installed plugin is used."""
    return ",".join(sorted({plugin.distribution for plugin in find_plugins()}))


@pytest.fixture(autouse=True)
def no_plugins_unless_needed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, installed_plugins: str
) -> None:
    """Let a test without the marker ``needs`` find no plugin, as in ``make test-core``."""
    if request.node.get_closest_marker("needs") is None:
        monkeypatch.setattr("quorate.plugins._host", None)
        monkeypatch.setenv("QUORATE_DISABLE_PLUGINS", installed_plugins)


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


# --- deciding and observing -------------------------------------------------------------------------------------------


def deciding(answer: Callable[[], bool | None]) -> Any:
    class Plugin:
        @hookimpl
        def quorate_decide_rescale(self, summary: RoundSummary) -> bool | None:
            return answer()

    return Plugin()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    line = "' '.join([os.environ['RANK'], *sys.argv[1:]]) + '\\n'"
    path.write_text(f"import os, sys\nsys.stdout.write({line})\n")  # one write: whole lines from several workers
    return path


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables of a job in which the tests run themselves."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
