"""Plugins that misbehave in a decision, in real jobs: they are reported, and the job goes on by the core's default."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from quorate import LaunchConfig, PluginHost, hookimpl, launch
from quorate.records import RestartDecision, Verdict

pytestmark = pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")

#: Fails in its first attempt only.
COMMAND = ("-S", "-c", "import os, sys; sys.exit(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0')")
HOOKS = [f"quorate_decide_{question}" for question in ("ranks", "launch", "cause", "restart")]


def misbehaving(answer: Any) -> Any:
    """Return a plugin whose decisions raise ``answer`` if it is an exception, and answer it otherwise."""

    @hookimpl
    def decide() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return type("Plugin", (), {name: staticmethod(decide) for name in HOOKS})


@pytest.mark.parametrize("answer", [OSError("scheduler gone"), "yes"], ids=["raises", "wrong type"])
def test_a_job_goes_on_without_a_plugin_that_misbehaves(answer: Any) -> None:
    sentences: list[str] = []
    host = PluginHost(extra=[("awkward", misbehaving(answer))], warn=sentences.append)
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1, max_restarts=1)
    assert launch(config, sys.executable, host=host)(*COMMAND) == {0: None}
    asked = {"quorate_decide_launch", "quorate_decide_cause", "quorate_decide_restart"}
    assert asked <= {hook for name, hook in host.misbehaving if name == "awkward"}
    assert sentences
    assert all("awkward" in sentence and "the decision is made without it" in sentence for sentence in sentences)
    assert len(sentences) == len(set(sentences)), "each is reported once"


def test_the_next_plugin_decides_where_the_first_one_raises() -> None:
    class Policy:
        @hookimpl
        def quorate_decide_restart(self) -> Any:
            return RestartDecision(Verdict.FAILED, "the second plugin says so")

    host = PluginHost(extra=[("a", misbehaving(OSError("no"))), ("b", Policy())], warn=lambda sentence: None)
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1, max_restarts=1)
    with pytest.raises(Exception, match="the second plugin says so"):
        launch(config, sys.executable, host=host)(*COMMAND)
